"""The floors of the house: a module imports from its own folder and from lower floors, and no folders form a circle."""

import ast
import graphlib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up. Who shares a floor knows nothing of each other.
FLOORS = (
    ("ldm_us/config.py",),
    ("ldm_us/networks",),
    ("ldm_us/diffusion",),
    ("ldm_us/files",),
    ("ldm_us/runtime",),
    ("ldm_us/display",),
    ("ldm_us/data", "weights_convert"),
    ("ldm_us/training", "ldm_us/synthesis"),
    ("ldm_us/evaluation",),
    ("ldm_us/report", "ldm_us/studio"),
    ("ldm_us/__init__.py",),
    ("train.py", "sample.py"),
    ("tests",),  # the benches fill networks as the tests do
    ("bench", "examples", "ldm_us/__main__.py"),
)
FREE = {"ldm_us", "ldm_us.__version__", "ldm_us.__file__"}  # everybody may write the version into a file
LEVEL = {part: level for level, parts in enumerate(FLOORS) for part in parts} | {"": len(FLOORS)}


def sources(root):
    """Every module of the house, as its path from the root; tests stand outside."""
    folders = ("ldm_us", "weights_convert", "bench", "examples")
    paths = [*root.glob("*.py"), *(path for folder in folders for path in root.glob(f"{folder}/**/*.py"))]
    return sorted(path.relative_to(root) for path in paths)


def part_of(path):
    """The part of FLOORS that a module belongs to; "" where nobody gave it a floor."""
    name = path.as_posix()
    return next((part for part in LEVEL if f"{name}/".startswith(f"{part}/")), "")


def folder_of(path):
    """The folder of a module. Files on the ground of ldm_us, scripts and entry points are each for itself."""
    alone = path.name == "__main__.py" or path.parent.as_posix() in {".", "ldm_us"}
    return (path if alone else path.parent).as_posix()


def module_at(root, dotted):
    """The path of a module or package of the house, None for anybody else's."""
    place = Path(*dotted.split("."))
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if (root / path).is_file()]
    return found[0] if found else None


def word(node):
    """The last word of a name such as importlib.import_module."""
    return getattr(node, "attr", getattr(node, "id", ""))


def names_imported(node, path):
    """What an import statement, or a call of import_module with a name written out, may bring in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
        module = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and word(node.func) in {"import_module", "__import__"}:
        return [str(value.value) for value in node.args[:1] if isinstance(value, ast.Constant)]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ldm_us":
        return [f"ldm_us.{node.attr}"]  # a public name
    return []


def imports(root):
    """(line of code, importing module, imported module), wherever in a file the import stands.

    A public name, be it ldm_us.generate or imported from ldm_us, is one of ldm_us/__init__.py.
    """
    found = []
    for path in sources(root):
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
            for name in names_imported(node, path):
                module = module_at(root, name) or module_at(root, name.rpartition(".")[0] or name)
                if module is not None and module != path and name not in FREE:
                    found.append((f"{path.as_posix()}:{node.lineno}", path, module))
    return found


def climbing(found):
    """Imports from a floor that is no lower, as lines to read."""
    return [
        f"{line} imports {module.as_posix()}"
        for line, path, module in found
        if part_of(path) != part_of(module) and LEVEL[part_of(path)] <= LEVEL[part_of(module)]
    ]


def between_folders(found):
    """(importing folder, imported folder) -> the lines that import."""
    lines = {}
    for line, path, module in found:
        if folder_of(path) != folder_of(module):
            lines.setdefault((folder_of(path), folder_of(module)), []).append(f"{line} imports {module.as_posix()}")
    return lines


def mutual(found):
    """Lines of two folders that import each other."""
    lines = between_folders(found)
    return [line for a, b in sorted(lines) if (b, a) in lines for line in lines[a, b]]


def circle(found):
    """The lines of one circle of folders, of whatever length; none where there is no circle."""
    lines, graph = between_folders(found), {}
    for importing, imported in lines:
        graph.setdefault(importing, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        folders = error.args[1][::-1]  # graphlib names each folder after the one it needs
        return [line for a, b in pairwise(folders) for line in lines[a, b]]
    return []


@pytest.fixture(scope="module")
def ours():
    """The imports of this project."""
    return imports(ROOT)


def test_every_module_has_a_floor():
    assert [path.as_posix() for path in sources(ROOT) if not part_of(path)] == []


def test_no_module_imports_from_a_higher_floor_or_from_the_neighbours(ours):
    assert len(ours) > 300
    assert climbing(ours) == []


def test_no_two_folders_import_each_other(ours):
    assert mutual(ours) == []


def test_no_folders_import_in_a_circle(ours):
    assert circle(ours) == []


def test_nothing_in_ldm_us_needs_the_converter_which_stands_beside(ours):
    users = {folder_of(path) for _, path, module in ours if part_of(module) == "weights_convert"}
    assert {user for user in users if user.startswith("ldm_us")} == set()


@pytest.fixture
def house(tmp_path):
    """A function: a house of these files -> its imports. Every folder is a package."""

    def build(**files):
        for name, text in {"ldm_us/config.py": "", "ldm_us/data/records.py": "", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            for folder in path.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        return imports(tmp_path)

    return build


@pytest.mark.parametrize(
    "text",
    [
        "import ldm_us.data.records",
        "from ldm_us.data.records import Record",
        "from ldm_us.data import records",
        "from ldm_us import data",
        "from ..data.records import Record",
        "def late():\n    from ldm_us.data import records",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ldm_us.data.records as records",
        "import importlib\nrecords = importlib.import_module('ldm_us.data.records')",
        "from ldm_us import generate",
        "import ldm_us\nldm_us.generate(None, [])",
    ],
)
def test_an_import_from_a_higher_floor_is_found_wherever_it_stands(house, text):
    (line,) = set(climbing(house(**{"ldm_us/files/lora.py": text})))
    assert line.startswith(f"ldm_us/files/lora.py:{len(text.splitlines())} imports ldm_us/")


def test_floors_below_ones_own_folder_and_the_version_may_be_imported(house):
    text = "import ldm_us\nimport numpy\nimport ldm_us.config\nfrom . import other\nprint(ldm_us.__version__)"
    found = house(**{"ldm_us/files/lora.py": text, "ldm_us/files/other.py": "from ldm_us import __version__"})
    assert len(found) == 2
    assert climbing(found) == mutual(found) == circle(found) == []


def test_neighbours_on_one_floor_may_not_be_imported(house):
    files = {"ldm_us/training/loop.py": "", "ldm_us/synthesis/plan.py": "from ldm_us.training import loop"}
    assert climbing(house(**files)) == ["ldm_us/synthesis/plan.py:1 imports ldm_us/training/loop.py"]


def test_a_folder_and_its_sub_folder_that_import_each_other_are_found_but_an_entry_point_stands_above(house):
    files = {
        "ldm_us/data/audit/text.py": "from ldm_us.data.records import Record",
        "ldm_us/data/__main__.py": "from ldm_us.data.audit.text import tell",
    }
    found = house(**files)
    assert mutual(found) == circle(found) == []
    files["ldm_us/data/split.py"] = "from ldm_us.data.audit.text import tell"
    assert mutual(house(**files)) == [
        "ldm_us/data/split.py:1 imports ldm_us/data/audit/text.py",
        "ldm_us/data/audit/text.py:1 imports ldm_us/data/records.py",
    ]


def test_a_circle_of_three_folders_is_found_and_its_imports_are_named(house):
    files = {
        "ldm_us/data/masks/a.py": "from ldm_us.data.readers import b",
        "ldm_us/data/readers/b.py": "from ldm_us.data.audit import c",
        "ldm_us/data/audit/c.py": "from ldm_us.data.masks import a",
    }
    found = house(**files)
    assert mutual(found) == []
    assert sorted(circle(found)) == [
        "ldm_us/data/audit/c.py:1 imports ldm_us/data/masks/a.py",
        "ldm_us/data/masks/a.py:1 imports ldm_us/data/readers/b.py",
        "ldm_us/data/readers/b.py:1 imports ldm_us/data/audit/c.py",
    ]
