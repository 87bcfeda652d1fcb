"""The links of docs/tour.md, from each equation to its line and its tests, and its figure: written here, never by hand.

    make tour          # python -m bench.tour

A new row of the table may have no links: `ldm_us/diffusion/ddpm.py:q_sample` for the code, the bare names of the tests.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.whole import draw_whole

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.md"
FIGURE = ROOT / "docs" / "images" / "whole.svg"
TAG = re.compile(r"([A-Z]\w*(?: [A-Z]\w*)*) (Eq\. \d+|algorithm \d+|section \d+(?:\.\d+)*|appendix [A-Z])")
PLACE = re.compile(r"`(\w+/[\w/]+\.py):([\w.]+)`")  # a place without a link
LINKED = re.compile(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)#L\d+\)")  # a place with one


class Function(NamedTuple):
    """A function or method: where it lies, and what it says."""

    name: str
    first: int
    last: int
    docstring: str


class Row(NamedTuple):
    """A row of the table."""

    tag: str
    what: str
    file: str
    function: str
    tests: list[str]


def tags_in(text: str) -> set[str]:
    """The equations that a text names: DDPM Eq. 4."""
    return {" ".join(found) for found in TAG.findall(text)}


def functions_in(path: Path) -> Iterator[Function]:
    """Every function and method of a file."""
    for outer in ast.parse(path.read_text(encoding="utf-8")).body:
        methods = [(f"{outer.name}.", node) for node in outer.body] if isinstance(outer, ast.ClassDef) else []
        for prefix, node in [("", outer), *methods]:
            if isinstance(node, ast.FunctionDef):
                yield Function(prefix + node.name, node.lineno, node.end_lineno or 0, ast.get_docstring(node) or "")


def tagged_lines(path: Path, comments: bool = True) -> dict[tuple[str, str], list[int]]:
    """The lines of a file with a tag, in a comment or anywhere, by the tag and the function around."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found: dict[tuple[str, str], list[int]] = {}
    for function in functions_in(path):
        for number in range(function.first, function.last + 1):
            line = lines[number - 1]
            for tag in tags_in(line.partition("# ")[2] if comments else line):
                found.setdefault((tag, function.name), []).append(number)
    return found


@cache
def named_tests() -> dict[str, tuple[Path, Function]]:
    """Every test of this repository."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return {function.name: (path, function) for path in paths for function in functions_in(path)}


def row_of(line: str) -> Row | None:
    """A line of the page as a row of the table; None where it is none."""
    if not line.startswith("|") or "`" not in line:
        return None
    tag, what, code, tests = (cell.strip() for cell in line.strip("|").split("|"))
    bare, linked = PLACE.search(code), LINKED.search(code)
    if not bare and not linked:
        raise ValueError(f"docs/tour.md, row {tag}: {code!r} is no place. Write `path/of/file.py:function`.")
    file, function = bare.groups() if bare else reversed(linked.groups())  # type: ignore[union-attr]
    return Row(tag, what, file, function, re.findall(r"`(\w+)`", tests))


def linked_row(row: Row, tests: dict[str, tuple[Path, Function]]) -> str:
    """The row with its links as the code stands now. Raise ValueError where the tag or a test is not there."""
    key, path = (row.tag, row.function), ROOT / row.file
    numbers = tagged_lines(path).get(key) or tagged_lines(path, comments=False).get(key)
    if not numbers:
        raise ValueError(f"docs/tour.md: {row.file}:{row.function} has no line with the tag {row.tag}. Mend the row.")
    missing = [name for name in row.tests if name not in tests]
    if missing:
        raise ValueError(f"docs/tour.md, row {row.tag}: there is no test {missing[0]}. Mend the row.")
    code = f"[`{row.function}`](../{row.file}#L{numbers[0]})"
    code += "".join(f" [{number}](../{row.file}#L{number})" for number in numbers[1:])
    places = [(name, tests[name][0].relative_to(ROOT).as_posix(), tests[name][1].first) for name in row.tests]
    return f"| {row.tag} | {row.what} | {code} | {' '.join(f'[`{n}`](../{file}#L{at})' for n, file, at in places)} |"


def linked(text: str) -> str:
    """The page with the links of its table as the code stands now."""
    tests = named_tests()
    rows = [(line, row_of(line)) for line in text.splitlines()]
    return "".join((line if row is None else linked_row(row, tests)) + "\n" for line, row in rows)


def main() -> int:
    """Write the links and the figure; 2 where a row leads nowhere."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    try:
        text = linked(TOUR.read_text(encoding="utf-8"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    TOUR.write_text(text, encoding="utf-8")
    FIGURE.write_text(draw_whole(), encoding="ascii")
    print(f"{TOUR.relative_to(ROOT)}, {FIGURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
