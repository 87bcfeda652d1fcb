"""Pages from templates: escaped, in ASCII, complete in themselves, for light and dark."""

import base64
import configparser
import io
import re

import jinja2
import pytest
from PIL import Image

from ldm_us.display.charts import VARIABLES
from ldm_us.display.pages import ROOT, environment, reduced

PIECES = '{% import "ldm_us/display/pieces.html" as pieces %}'
BASE = '{% extends "ldm_us/display/base.html" %}{% block main %}{{ text }}{% endblock %}'
STYLE = (ROOT / "ldm_us/display/style.css").read_text("ascii")


def made(template, **values):
    return environment().from_string(PIECES + template).render(values)


def test_what_is_put_into_a_page_is_escaped_and_nothing_is_loaded():
    page = environment().from_string(BASE).render(title="<i>&", text="<script>'\"")
    assert "<title>&lt;i&gt;&amp;</title>" in page
    assert "&lt;script&gt;&#39;&#34;" in page
    assert not re.search(r"<script|<link|url\(|@import|http", page)


def test_a_name_without_a_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="text"):
        environment().from_string(BASE).render(title="")


def test_a_table_has_a_row_each_and_escapes_its_cells():
    table = made("{{ pieces.table(['a<'], [['1'], ['<2>']]) }}")
    assert "a&lt;" in table
    assert re.findall(r"<td>(.*?)</td>", table) == ["1", "&lt;2&gt;"]


@pytest.mark.parametrize(("size", "shown"), [((8, 4), (8, 4)), ((300, 100), (100, 33))])
def test_a_picture_lies_in_the_page_and_a_large_one_is_reduced(size, shown):
    picture = Image.new("RGB", size, "red")
    html = made("{{ pieces.image(picture, alt, 100) }}", picture=picture, alt='"<')
    assert 'alt="&#34;&lt;"' in html
    assert f'width="{shown[0]}" height="{shown[1]}"' in html
    with Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)"', html)[1], validate=True))) as inside:
        assert inside.size == shown
        assert inside.getpixel((0, 0)) == (255, 0, 0)
    assert reduced(picture, 100).size == shown
    assert picture.size == size, "the argument stays as it was"


def test_a_grid_has_an_empty_place_where_there_is_no_picture():
    grid = made("{{ pieces.picture_grid('t', ['c', 'd'], [('r', [p, none])], 'm', 's') }}", p=Image.new("L", (2, 2)))
    assert grid.count("<img") == 1
    assert 'alt="r, c"' in grid
    assert "<td></td>" in grid


def test_every_colour_of_a_chart_has_another_one_in_the_dark():
    dark = re.search(r"dark\) \{\s*:root \{(.*?)\}", STYLE, re.DOTALL)[1]
    own = dict(re.findall(r"(--\w+): (#\w+);", dark))
    assert own.keys() >= VARIABLES.keys()
    assert all(own[name] != colour for name, colour in VARIABLES.items())
    assert set(re.findall(r"var\((--\w+)\)", STYLE)) <= own.keys()


@pytest.mark.parametrize("package", ["ldm_us", "weights_convert"])
def test_templates_and_style_sheets_are_installed_with_the_package(package):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"][package].split()
    installed = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    wanted = {path for path in (ROOT / package).rglob("*.*") if path.suffix in (".html", ".css", ".js", ".mplstyle")}
    assert wanted <= installed
