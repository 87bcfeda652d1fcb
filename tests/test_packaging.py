"""What holds for the project as a whole: versions that agree, make targets that exist, sizes and imports (STYLE.md)."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ldm_us

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("ldm_us/**/*.py"), *ROOT.glob("weights_convert/**/*.py")])
MAX_FILE_LINES, MAX_FUNCTION_LINES = 250, 50  # STYLE.md rules 1 and 2

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


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


def test_make_alone_prints_the_help(run_make):
    assert run_make().stdout == run_make("help").stdout != ""


@each_source
def test_every_file_opens_with_a_docstring_that_says_what_it_implements(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path.name} has no docstring at its top: STYLE.md rule 1"


@each_source
def test_every_file_is_ascii(path):
    lines = path.read_bytes().splitlines()
    assert [number for number, line in enumerate(lines, 1) if not line.isascii()] == []


@each_source
def test_every_file_holds_one_idea_by_size_and_by_name(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{path.name} has {lines} lines: STYLE.md rule 1"
    assert path.name not in {"utils.py", "common.py", "base.py", "helpers.py"}, "a file is named after its idea"


@each_source
def test_every_function_is_one_step_by_size(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f"{node.name}, line {node.lineno}": node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


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
