"""docs/tour.md: every equation in the code, at its function, with tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TAG = re.compile(r"([A-Z]\w*(?: [A-Z]\w*)*) (Eq\. \d+|section \d+(?:\.\d+)*|appendix [A-Z])")


def tags_in(text):
    return {" ".join(match) for match in TAG.findall(text)}


def functions_in(path):
    """Every function and method of a file: its name, first and last line, docstring."""
    for outer in ast.parse(path.read_text()).body:
        methods = [(f"{outer.name}.", node) for node in outer.body] if isinstance(outer, ast.ClassDef) else []
        for prefix, node in [("", outer), *methods]:
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node.lineno, node.end_lineno, ast.get_docstring(node) or ""


def tags_of_the_code():
    """Every (tag, file:function) whose comment stands in ldm_us."""
    found = set()
    for path in sorted((ROOT / "ldm_us").rglob("*.py")):
        lines, file = path.read_text().splitlines(), path.relative_to(ROOT).as_posix()
        for name, first, last, _ in functions_in(path):
            comments = [line.partition("# ")[2] for line in lines[first - 1 : last]]
            found |= {(tag, f"{file}:{name}") for comment in comments for tag in tags_in(comment)}
    return found


def rows_of_the_tour():
    """Every row of the table as (tag, file:function, names of tests)."""
    for line in (ROOT / "docs" / "tour.md").read_text().splitlines():
        if line.startswith("|") and "`" in line:
            tag, _, code, tests = (cell.strip() for cell in line.strip("|").split("|"))
            yield tag, code.strip("`"), re.findall(r"`(\w+)`", tests)


def all_tests():
    """Every test function of this repository and its docstring."""
    return {name: doc for path in (ROOT / "tests").rglob("test_*.py") for name, _, _, doc in functions_in(path)}


def test_every_equation_in_the_code_has_a_row_in_the_tour():
    code = tags_of_the_code()
    assert len(code) > 15
    assert code - {(tag, place) for tag, place, _ in rows_of_the_tour()} == set()


def test_the_tour_names_only_functions_and_tests_that_exist():
    tests = all_tests()
    for _, place, named in rows_of_the_tour():
        file, _, function = place.partition(":")
        assert function in {name for name, *_ in functions_in(ROOT / file)}, place
        assert named
        assert set(named) <= tests.keys(), place


def test_every_equation_in_the_code_is_in_the_docstring_of_a_test():
    proved = {tag for doc in all_tests().values() for tag in tags_in(doc)}
    assert {tag for tag, _ in tags_of_the_code()} - proved == set()
