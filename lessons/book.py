"""The lessons as a book: they are run, and each is a page that loads nothing from anywhere.

python -m lessons.book --out runs/lessons       # what `make lessons` does
"""

import argparse
import base64
import inspect
import io
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m lessons.book")
    about = "Run the ten lessons, on the CPU and with seeds of their own, and write them as pages: two minutes."
    describe(parser, about, "--out runs/lessons")
    out = Path("runs/lessons")
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="folder for the pages (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds nothing but such pages")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from markupsafe import Markup
from matplotlib import mathtext, rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from ldm_us.display.pages import render
from ldm_us.files.atomic import atomic_folder
from ldm_us.runtime.checks import check_extra
from ldm_us.runtime.entry import NOTHING_WRITTEN, run_command
from lessons.cells import LESSONS, NAMES, run

MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
SIZE = 40  # points that a letter of mathematics is drawn at; the page scales it to its own letters
SCREEN = 88  # pixels of the page for an inch of a figure
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


class Part(NamedTuple):
    """A piece of a page."""

    kind: str  # prose, code or picture
    content: Any


def parts_of(path: Path, smallest: bool = False) -> list[Part]:
    """Run a lesson; -> its prose, code and pictures as HTML and base64."""
    parts = []
    for cell in run(path, smallest):
        if cell.code:
            parts.append(Part("code", highlighted(cell.code)))
        if isinstance(cell.output, Figure):
            parts.append(Part("picture", picture(cell.output)))
        elif cell.output is not None:
            parts.append(Part("prose", prose(inspect.cleandoc(str(cell.output)))))
    return parts


def prose(text: str) -> Markup:
    """Markdown with mathematics between dollar signs -> HTML."""
    from markdown import markdown

    kept: list[str] = []

    def keep(html: str) -> str:
        kept.append(html)
        return f"@{len(kept) - 1}@"

    text = FENCE.sub(lambda found: keep(highlighted(found[1])), text)
    text = MATH.sub(lambda found: keep(formula(found[1] or found[2], display=bool(found[1]))), text)
    html = markdown(text, extensions=["tables"])
    return Markup(re.sub(r"@(\d+)@", lambda found: kept[int(found[1])], html))


def highlighted(code: str) -> Markup:
    """Python -> HTML with a class a kind of word."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return Markup(highlight(code, PythonLexer(), HtmlFormatter(cssclass="code")))


def formula(tex: str, display: bool) -> Markup:
    """TeX as an inline SVG that sits on the line of the text around it and has its colour; read out as TeX."""
    tex, file = " ".join(tex.split()), io.BytesIO()
    with rc_context({"svg.fonttype": "path", "mathtext.fontset": "cm", "svg.hashsalt": tex}):
        depth = mathtext.math_to_image(f"${tex}$", file, FontProperties(size=SIZE), dpi=72, format="svg")
    svg = file.getvalue().decode()
    (box,), (letters,) = (
        re.findall(r'viewBox="0 0 (\S+ \S+)"', svg),
        re.findall(r'<g id="figure_1">.*</g>', svg, re.DOTALL),
    )
    letters = re.sub(r'<g id="patch_1">.*?</g>|<!--.*?-->| id="(figure|text)_1"', "", letters, flags=re.DOTALL)
    width, height = (float(side) for side in box.split())
    sides = {"width": width, "height": height, "depth": depth, "size": SIZE}
    return Markup(render("lessons/formula.html", tex=tex, display=display, letters=Markup(letters), **sides))


def picture(figure: Figure) -> dict[str, Any]:
    """A figure without its margins as base64, and how many pixels wide the page shows it: half of those that it has."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * SCREEN, bbox_inches="tight", pad_inches=0.06)
    width = Image.open(file).width
    return {"png": base64.b64encode(file.getvalue()).decode("ascii"), "width": width // 2}


def write_book(out: Path, names: list[str], smallest: bool = False) -> None:
    """Write a page for each lesson, and index.html with their questions."""
    out.mkdir(parents=True, exist_ok=True)
    titles = [(name, *title_of(LESSONS / f"{name}.py")) for name in names]
    for i, (name, title, _) in enumerate(titles):
        around = {"before": titles[i - 1][0] if i else "", "after": titles[i + 1][0] if i + 1 < len(titles) else ""}
        page = render(
            "lessons/page.html", title=title, name=name, parts=parts_of(LESSONS / f"{name}.py", smallest), **around
        )
        (out / f"{name}.html").write_text(page, encoding="ascii")
    (out / "index.html").write_text(render("lessons/index.html", title="Ten lessons", lessons=titles), encoding="ascii")


def title_of(path: Path) -> tuple[str, str]:
    """The title of a lesson and the question in its first line."""
    text = path.read_text(encoding="utf-8")
    title, question = re.search(r"^    # (.+)$", text, re.MULTILINE), re.match(r'"""Lesson \d+: (.+)"""', text)
    assert title is not None
    assert question is not None
    return title[1], question[1]


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless that is pages, and they are to be replaced."""
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name] if out.exists() else []
    if inside and not overwrite:
        raise ValueError(f"--out {out}: exists and is not empty. Choose another folder, or add --overwrite.")
    others = [name for name in inside if name not in {"index.html", *(f"{name}.html" for name in NAMES)}]
    if others:
        raise ValueError(f"--out {out}: holds {others[0]}, which is no page of a lesson. Choose another folder.")


def main(argv: list[str] | None = None) -> int:
    """Write the book, whole or not at all."""
    options = build_parser().parse_args(argv)
    check_extra("lessons", "markdown", "pygments")
    check_out(options.out, options.overwrite)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(options.out) as folder:
        write_book(folder, NAMES)
    print(f"{options.out / 'index.html'}: {len(NAMES)} lessons")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, NOTHING_WRITTEN))
