"""The look of charts: axes with few round ticks of their own names, gaps, pixels, SVG that a page can hold."""

import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from ldm_us.display import charts
from ldm_us.display.charts import COLOURS, LARGEST, labels, number, padded, plain, with_gaps

NAN, INF = math.nan, math.inf
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<script>alert("$x^2$ \\frac{") & #1c6cb3 \u4e2d\ud800\x00\n'


def scaled(low, high, **options):
    """The ticks of an axis from low to high, and their labels."""
    with charts.style():
        _, (axes,) = charts.new_figure(300, 200)
        charts.scale(axes, "y", low, high, **options)
        assert axes.get_ylim() == (low, high)
        return list(axes.get_yticks()), [text.get_text() for text in axes.get_yticklabels()]


def svg_of(values=(1.0, 2.0, 3.0), name="name", text="text", tooltips=None, **look):
    with charts.style():
        figure, (axes,) = charts.new_figure(300, 200)
        lines = axes.plot(range(len(values)), values, marker="o", gid="dots", label=plain(text), **look)
        charts.write(axes, (0, 10), text)
        charts.legend(axes, lines, 2)
        charts.scale(axes, "y", 0.0, 5.0)
        return charts.to_svg(figure, name, tooltips)


def picture_of(colour=COLOURS[0], width=300, height=200, count=1, columns=1):
    with charts.style():
        figure, panels = charts.new_figure(width, height, count, columns)
        for axes in panels:
            axes.plot([0, 1], [0, 1], color=colour)
        return charts.to_picture(figure)


@pytest.mark.parametrize("low", [-3.0, 0.0, 0.1, 977.0])
@pytest.mark.parametrize("span", [1e-4, 0.3, 1.0, 7.0, 12345.0])
def test_ticks_are_few_round_and_inside(low, span):
    ticks, _ = scaled(low, low + span)
    assert 2 <= len(ticks) <= 6
    distance = ticks[1] - ticks[0]
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    assert [b - a for a, b in pairwise(ticks)] == pytest.approx([distance] * (len(ticks) - 1))
    assert f"{distance:.0e}"[0] in "125"


@pytest.mark.parametrize(("low", "high"), [(-4.0, 2.0), (-2.1, -0.3), (0.0, 0.9), (0.30, 0.34), (-12.5, 12.5)])
def test_ticks_of_a_log_scale_are_few_and_inside(low, high):
    ticks, strings = scaled(10**low, 10**high, log_scale=True)
    assert 2 <= len(ticks) <= 10
    assert ticks == sorted(ticks)
    assert all(low - 1e-6 <= math.log10(tick) <= high + 1e-6 for tick in ticks)
    assert len(set(strings)) == len(strings)


@pytest.mark.parametrize(
    ("low", "high"), [(0.092851, 0.092853), (0, 1), (10_000, 50_000), (1 - 1e-12, 1), (-2e-9, 3e-9)]
)
def test_two_ticks_never_read_the_same(low, high):
    ticks, strings = scaled(low, high)
    assert len(set(strings)) == len(ticks) >= 2
    assert [float(string.replace("k", "e3")) for string in strings] == pytest.approx(ticks, rel=1e-9, abs=1e-12)
    assert strings == labels(ticks)


def test_steps_have_whole_ticks():
    for last in (1, 2, 3, 7, 100):
        ticks, _ = scaled(0, last, whole=True)
        assert all(tick == int(tick) for tick in ticks)
        assert len(ticks) >= 2


def test_a_constant_gets_room_on_both_sides():
    for value in (0.0, 5.0, -5.0, 1e-9):
        low, high = padded(value, value)
        assert low < value < high
    low, high = padded(5.0, 5.0, log_scale=True)
    assert 0 < low < 5.0 < high


def test_numbers_are_short():
    assert [number(v) for v in (0.1 + 0.2, 500.0, 15_000, 0.0, 1e-5)] == ["0.3", "500", "15k", "0", "1e-05"]


def test_what_has_no_place_is_a_gap():
    values = [1.0, NAN, INF, -INF, 2 * LARGEST, 0.0, -1.0]
    assert [bool(gap) for gap in np.isnan(with_gaps(values))] == [False, True, True, True, True, False, False]
    assert np.isnan(with_gaps(values, log_scale=True)).tolist() == [False] + [True] * 6
    assert values[0] == 1.0
    assert math.isnan(values[1]), "the argument stays as it was"


def test_a_figure_has_so_many_pixels_and_its_panels_lie_in_rows():
    assert picture_of(width=310, height=190).size == (310, 190)
    assert picture_of(width=310, height=190, count=3, columns=2).size == (620, 380)
    picture = np.asarray(picture_of(width=310, height=190, count=3, columns=2)).astype(int)
    blue = np.abs(picture - (0x1C, 0x6C, 0xB3)).max(axis=-1) < 16
    inked = [blue[y : y + 190, x : x + 310].any() for y in (0, 190) for x in (0, 310)]
    assert inked == [True, True, True, False]


def test_the_look_does_not_depend_on_the_settings_of_the_user_and_leaves_them_as_they_were():
    before = picture_of()
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "text.usetex": True}):
        settings = dict(matplotlib.rcParams)
        assert picture_of().tobytes() == before.tobytes()
        assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("text", [HOSTILE, "$", "_hidden", "a$b$c_{", "\u4e2d\u6587"])
def test_any_text_can_be_drawn_and_is_no_mark_up(text, recwarn):
    svg = svg_of(name=text, text=text, tooltips={"dots": [text] * 3})
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == plain(text)
    assert [title.text for title in root.iter("title")] == [plain(text)] * 3
    assert [element.text for element in root.iter("text")].count(plain(text)) >= 1
    assert "<script" not in svg
    assert not recwarn.list


def test_a_chart_for_a_page_has_its_colours_and_width_and_refers_to_nothing_outside():
    root = ElementTree.fromstring(svg_of(color=COLOURS[2], alpha=0.5))
    text = ElementTree.tostring(root, encoding="unicode")
    assert root.get("viewBox") == "0 0 300 200"
    assert (root.get("width"), root.get("height"), root.get("role")) == (None, None, "img")
    assert "var(--c2)" in text
    assert "var(--ink)" in text
    assert not re.search(r": #[0-9a-f]{6}", text), "every colour is one of the page"
    assert not re.search(r"http|<!|<\?|<style|font-family|<metadata", text)
    ids = {element.get("id") for element in root.iter()} - {None}
    assert set(re.findall(r"#([\w-]+)", text)) == ids


def test_two_charts_of_a_page_have_no_id_in_common_and_the_same_chart_has_the_same_bytes():
    ids = [set(re.findall(r' id="(\S+)"', svg_of(name=name))) for name in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert svg_of(name="a") == svg_of(name="a")


def test_a_dot_without_a_place_has_no_tooltip():
    root = ElementTree.fromstring(svg_of([1.0, NAN, 3.0], tooltips={"dots": ["first", "last"]}))
    dots = [use for use in root.iter("use") if use.find("title") is not None]
    assert [dot.find("title").text for dot in dots] == ["first", "last"]
    assert float(dots[0].get("y")) > float(dots[1].get("y")), "large values are up"


def test_commands_start_without_matplotlib_and_jinja2():
    code = "import train, sample, weights_convert.__main__, ldm_us.report.__main__, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ldm_us.display.pages" in done.stdout.split()
    assert {"matplotlib", "jinja2"} & set(done.stdout.split()) == set()
