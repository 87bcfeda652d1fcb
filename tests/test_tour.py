"""docs/tour.md: every equation in the code has a link to its line and to tests that name it, and the figure is true.

`make tour` writes the links and the figure; here each link is followed anew.
"""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.tour import FIGURE, TOUR, functions_in, linked, main, named_tests, tagged_lines, tags_in
from bench.whole import draw_whole
from bench.whole_shapes import shapes_of
from ldm_us.config import SD15
from tests.conftest import MICRO

ROOT = Path(__file__).parents[1]
MEND = "docs/tour.md no longer points where it says. Write its links and its figure again: make tour"
LINK = re.compile(r"\]\(\.\./([\w/]+\.py)#L(\d+)\)")


def cells():
    """Every row of the table as (tag, the cell of the code, the cell of the tests)."""
    rows = [line for line in TOUR.read_text().splitlines() if line.startswith("|") and "`" in line]
    for row in rows:
        tag, _, code, tests = (cell.strip() for cell in row.strip("|").split("|"))
        yield tag, code, tests


def followed(cell):
    """The lines that the links of a cell lead to."""
    links = LINK.findall(cell)
    assert links, cell
    return [(ROOT / file).read_text().splitlines()[int(number) - 1] for file, number in links]


def test_every_equation_in_the_code_has_a_row_in_the_tour():
    code = {
        (tag, f"{path.relative_to(ROOT).as_posix()}#{number}", function)
        for path in sorted((ROOT / "ldm_us").rglob("*.py"))
        for (tag, function), numbers in tagged_lines(path).items()
        for number in numbers
    }
    rows = {
        (tag, f"{file}#{number}", re.search(r"`([\w.]+)`", cell)[1])
        for tag, cell, _ in cells()
        for file, number in LINK.findall(cell)
    }
    assert len(code) > 40
    missing = sorted(code - rows)
    assert missing == [], (
        f"Add `| tag | what it says | `file:function` | `test` |` for each to docs/tour.md, then: {MEND}"
    )


def test_every_link_of_an_equation_leads_to_a_line_that_carries_its_tag():
    for tag, code, _ in cells():
        for line in followed(code):
            assert tag in tags_in(line), f"{tag}: {line.strip()!r}. {MEND}"


def test_every_test_of_an_equation_is_there_and_its_docstring_names_the_equation():
    tests = named_tests()
    for tag, _, cell in cells():
        names = re.findall(r"`(\w+)`", cell)
        lines = followed(cell)
        assert len(names) == len(lines), MEND
        for name, line in zip(names, lines, strict=True):
            assert line.startswith((f"def {name}(", f"    def {name}(")), f"{tag}: {line!r} is not {name}. {MEND}"
            assert tag in tags_in(tests[name][1].docstring), f"the docstring of {name} does not name {tag}"


def test_every_equation_in_the_code_is_in_the_docstring_of_a_test():
    proved = {tag for _, test in named_tests().values() for tag in tags_in(test.docstring)}
    code = {tag for path in (ROOT / "ldm_us").rglob("*.py") for tag, _ in tagged_lines(path)}
    assert code - proved == set()


def test_the_page_is_what_make_tour_writes():
    text = TOUR.read_text()
    assert linked(text) == text, MEND
    assert len(text.splitlines()) < 300


def test_a_new_row_without_links_gets_them_and_a_moved_line_is_found_again():
    name = "test_one_jump_equals_the_composition_of_single_noising_steps"
    (found,) = linked(f"| DDPM Eq. 4 | z_t | `ldm_us/diffusion/ddpm.py:q_sample` | `{name}` |\n").splitlines()
    assert "[`q_sample`](../ldm_us/diffusion/ddpm.py#L" in found
    assert f"[`{name}`](../tests/diffusion/test_ddpm.py#L" in found
    assert linked(re.sub(r"#L\d+", "#L1", found) + "\n") == found + "\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("| DDPM Eq. 4 | z_t | q_sample | `test_x` |", "is no place"),
        (
            "| DDPM Eq. 5 | z_t | `ldm_us/diffusion/ddpm.py:q_sample` | `test_x` |",
            "no line with the tag DDPM Eq. 5",
        ),
        ("| DDPM Eq. 4 | z_t | `ldm_us/diffusion/ddpm.py:q_sample` | `test_x` |", "there is no test test_x"),
    ],
)
def test_a_row_that_leads_nowhere_is_named_and_nothing_is_written(row, said, tmp_path, monkeypatch, capsys):
    page = tmp_path / "tour.md"
    page.write_text(row + "\n")
    monkeypatch.setattr("bench.tour.TOUR", page)
    monkeypatch.setattr(sys, "argv", ["bench.tour"])
    assert main() == 2
    assert said in capsys.readouterr().err
    assert page.read_text() == row + "\n"


def test_no_two_tests_share_a_name_that_the_tour_links():
    named = {name for _, _, cell in cells() for name in re.findall(r"`(\w+)`", cell)}
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    every = [function.name for path in paths for function in functions_in(path)]
    assert [name for name in named if every.count(name) != 1] == []


def test_the_figure_is_the_one_that_the_modules_shapes_give():
    assert FIGURE.read_text() == draw_whole(), MEND


def test_the_figure_follows_the_config_and_loads_nothing():
    micro, whole = draw_whole(MICRO), FIGURE.read_text()
    for svg, config in ((micro, MICRO), (whole, SD15)):
        words = {element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
        size = config.image_size
        small = size // config.vae.downsampling
        assert {f"(3, {size}, {size})", f"({config.vae.latent_channels}, {small}, {small})"} <= words
        assert f"({config.text.length}, {config.text.width})" in words
        assert svg.count("http") == 1, "the name of SVG itself"


def test_stable_diffusion_is_drawn_with_the_shapes_of_its_paper():
    """LDM and ControlNet: 12 skips and a middle, 77 x 768 text states, 64 x 64 latents of 512 x 512 pixels."""
    seen = shapes_of(SD15)
    assert seen["unet"][0].took == seen["unet"][0].gave == (4, 64, 64)
    assert seen["vae.decoder"][0].gave == (3, 512, 512)
    assert seen["text"][0].gave == (77, 768)
    assert [seen[f"controlnet.zero_convs.{i}"][0].gave for i in (0, 3, 6, 9, 11)] == [
        (320, 64, 64),
        (320, 32, 32),
        (640, 16, 16),
        (1280, 8, 8),
        (1280, 8, 8),
    ]
    assert seen["controlnet.zero_conv_middle"][0].gave == (1280, 8, 8)
    assert sum(name.startswith("controlnet.zero_conv") for name in seen) == 13


def test_make_tour_runs_what_these_tests_name():
    plan = subprocess.run(["make", "-n", "tour"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "bench.tour" in plan
