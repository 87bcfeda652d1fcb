"""Run a lesson cell by cell, in the order of its file, without marimo: for the book, the check and the tests.

Marimo is an editor of a hundred files; a lesson uses five of its names. They are stood in for here.
"""

import ast
import dataclasses
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

import ldm_us

LESSONS = Path(__file__).resolve().parent
NAMES = sorted(path.stem for path in LESSONS.glob("[0-9][0-9]_*.py"))  # "01_one_picture_three_knobs", ...
FEWEST = 2  # sampling steps where a lesson is only tested


class Prose(str):
    """Markdown, as `mo.md` takes it."""


@dataclass(frozen=True)
class Slider:
    """A number to choose in `marimo edit`; elsewhere it stays as the lesson has it."""

    start: float
    stop: float
    value: float
    label: str

    def __str__(self) -> str:
        return f"*{self.label}: {self.value}*"


@dataclass(frozen=True)
class Cell:
    """One cell that was run."""

    code: str  # "" where the lesson hides it
    output: Any  # its last expression; None where that is a statement


def run(path: Path, smallest: bool = False) -> list[Cell]:
    """Run all cells of a lesson. `smallest`: with sliders at their left ends and few sampling steps, for a test."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, str(path))
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    cells = []
    with stand_in(smallest):
        for node in tree.body:
            if isinstance(node, ast.With):  # app.setup: the imports
                run_body(node.body, names, path)
            elif isinstance(node, ast.FunctionDef) and decorator(node) == "function":
                define(node, names, path)
                cells.append(Cell(text_of(source, node.lineno, node.end_lineno), None))
            elif isinstance(node, ast.FunctionDef) and decorator(node) == "cell":
                body = [statement for statement in node.body if not isinstance(statement, ast.Return)]
                code = "" if hidden(node) else text_of(source, first_line(body[0]), body[-1].end_lineno)
                cells.append(Cell(code, run_body(body, names, path)))
    return cells


def functions_of(path: Path) -> dict[str, Any]:
    """What a lesson or a solution defines for all cells: its imports and functions. No cell is run."""
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    with stand_in(smallest=True):
        for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
            if isinstance(node, ast.With):
                run_body(node.body, names, path)
            elif isinstance(node, ast.FunctionDef) and decorator(node) in ("function", ""):
                define(node, names, path)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                run_body([node], names, path)
    return names


def decorator(node: ast.FunctionDef) -> str:
    """Which of app's decorators a function has: "cell", "function" or ""."""
    for each in node.decorator_list:
        called = each.func if isinstance(each, ast.Call) else each
        if isinstance(called, ast.Attribute):
            return called.attr
    return ""


def hidden(node: ast.FunctionDef) -> bool:
    """Whether a cell is decorated with hide_code=True."""
    return any(isinstance(each, ast.Call) and bool(each.keywords) for each in node.decorator_list)


def define(node: ast.FunctionDef, names: dict[str, Any], path: Path) -> None:
    """Define a function among the names, without its decorator."""
    node.decorator_list = []
    run_body([node], names, path)


def run_body(body: list[ast.stmt], names: dict[str, Any], path: Path) -> Any:
    """Run statements; -> the value of the last one, where it is an expression."""
    *before, last = body
    if not isinstance(last, ast.Expr):
        before, last = body, None
    exec(compile(ast.Module(before, type_ignores=[]), str(path), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(path), "eval"), names)


def first_line(node: ast.stmt) -> int:
    """The line on which a statement begins, its decorators included."""
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def text_of(source: str, first: int, last: int | None) -> str:
    """Lines of a file, without the indentation that they share."""
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : last]))


@contextmanager
def stand_in(smallest: bool) -> Iterator[None]:
    """Inside, `import marimo` gives the few names that lessons use, and lessons find their pictures (show.py)."""

    def slider(start: float, stop: float, value: float, label: str = "", **_: Any) -> Slider:
        return Slider(start, stop, start if smallest else value, label)

    def sampling(*args: Any, **values: Any) -> Any:
        asked = original(*args, **values)
        return dataclasses.replace(asked, steps=min(asked.steps, FEWEST)) if smallest else asked

    marimo = ModuleType("marimo")
    marimo.__dict__.update(App=SimpleNamespace, md=Prose, ui=SimpleNamespace(slider=slider))
    original, modules, path, threads = ldm_us.Sampling, sys.modules.get("marimo"), [*sys.path], torch.get_num_threads()
    sys.modules["marimo"] = marimo
    ldm_us.__dict__["Sampling"] = sampling
    sys.path.insert(0, str(LESSONS))
    try:
        yield
    finally:
        sys.path[:] = path
        torch.set_num_threads(threads)
        ldm_us.__dict__["Sampling"] = original
        del sys.modules["marimo"]
        if modules is not None:
            sys.modules["marimo"] = modules
