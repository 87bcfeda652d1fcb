"""What holds for the project as a whole: versions that agree, make targets that exist, sizes and imports (STYLE.md)."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import ldm_us
from tests.conftest import SLOWEST

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Source:
    """One file: its lines, and what they say."""

    lines: list[str]
    tree: ast.Module


@pytest.fixture(scope="module")
def sources():
    """Name -> file, for all that is held to STYLE.md whole."""
    paths = [path for pattern in ("*.py", "ldm_us/**/*.py", "weights_convert/**/*.py") for path in ROOT.glob(pattern)]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}
    return {name: Source(text.splitlines(), ast.parse(text)) for name, text in texts.items()}


def test_the_package_has_the_version_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert ldm_us.__version__ == setup["metadata"]["version"]


def test_the_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [ldm_us.__version__]


def test_no_text_holds_the_marks_of_an_unfinished_merge():
    texts = [*ROOT.glob("*.*"), ROOT / "Makefile", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/**/*.py")]
    texts = [path for path in texts if path.is_file() and ".venv" not in path.parts]
    marked = [path.name for path in texts if re.search(r"^(<{7} |>{7} |={7}$)", path.read_text("utf-8"), re.MULTILINE)]
    assert ROOT / "README.md" in texts
    assert marked == []


@pytest.fixture
def run_make():
    """Call make with nothing inherited from a `make test` that may have started these tests."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--no-print-directory", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def test_make_help_lists_every_target_once_and_each_of_them_exists(run_make):
    listed = re.findall(r"^make (\S+) +\S", run_make().stdout, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert sorted(listed) == sorted(phony[1].split())
    for target in listed:
        dry_run = run_make("--dry-run", target)
        assert dry_run.returncode == 0, dry_run.stderr


def test_the_files_that_are_tested_first_exist():
    assert [name for name in SLOWEST if not (ROOT / "tests" / name).is_file()] == []


def test_make_alone_prints_the_help(run_make):
    assert run_make().stdout == run_make("help").stdout != ""


def test_every_file_opens_with_a_docstring_that_says_what_it_implements(sources):
    assert [name for name, source in sources.items() if not ast.get_docstring(source.tree)] == []


def test_every_file_is_ascii(sources):
    lines = [(name, number, line) for name, source in sources.items() for number, line in enumerate(source.lines, 1)]
    assert [f"{name}:{number}" for name, number, line in lines if not line.isascii()] == []


def test_every_file_is_named_after_its_idea(sources):
    assert [name for name in sources if Path(name).name in {"utils.py", "common.py", "base.py", "helpers.py"}] == []


def budget(what):
    """The number that the budgets of STYLE.md give for this."""
    (number,) = re.findall(rf"^\| {re.escape(what)} \| ([\d,]+) ", (ROOT / "STYLE.md").read_text("utf-8"), re.MULTILINE)
    return int(number.replace(",", ""))


def test_every_file_holds_one_idea_by_size(sources):
    most = budget("a file")
    sizes = {name: len(source.lines) for name, source in sources.items()}
    assert {name: size for name, size in sizes.items() if size > most} == {}


def test_every_function_is_one_step_by_size(sources):
    most = budget("a function, `main` and `__init__` included")
    functions = [
        (f"{name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)
        for name, source in sources.items()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {function: size for function, size in functions if size > most} == {}


def test_every_folder_can_be_overseen(sources):
    most = budget("a folder, `__init__.py` left out")
    folders = Counter(str(Path(name).parent) for name in sources if Path(name).name != "__init__.py")
    assert {folder: size for folder, size in folders.items() if size > most} == {}


@pytest.mark.parametrize(
    "what", ["`ldm_us/networks` + `ldm_us/diffusion`", "`ldm_us` + `weights_convert` + `train.py` + `sample.py`"]
)
def test_the_book_and_the_whole_keep_to_their_budgets(what, sources):
    parts = re.findall(r"`(\S+)`", what)
    counted = [source for name, source in sources.items() if f"{name}/".startswith(tuple(f"{part}/" for part in parts))]
    assert len(counted) >= 2 * len(parts)
    assert sum(len(source.lines) for source in counted) <= budget(what)


@pytest.fixture(scope="module")
def modules_of_the_model():
    """What a fresh interpreter has loaded after importing the networks."""
    code = "import ldm_us.diffusion.model, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_networks_does_not_import_open_clip(modules_of_the_model):
    assert "ldm_us.networks.unet" in modules_of_the_model
    assert "open_clip" not in modules_of_the_model


def test_the_networks_know_nothing_of_files_data_or_training(modules_of_the_model):
    above = {"ldm_us.files.checkpoint", "ldm_us.data", "ldm_us.training", "ldm_us.evaluation", "ldm_us.report"}
    assert modules_of_the_model & above == set()
