"""docs/changing.md: each diff applies to the package as it is, and the copy passes the tests named beside it."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_us.config import US128, config_from_dict, config_to_dict
from tests.changing.page import PAGE, changes

ROOT = Path(__file__).parents[1]
CHANGES = changes()
COPIED = ("ldm_us", "weights_convert", "tests", "docs/masks", "docs/changing.md", "train.py", "sample.py", "setup.cfg")
NEW_FIELDS = re.findall(r"`(config\.(\w+): unknown fields \['(\w+)'\][^`]*)`", PAGE.read_text().replace("\n", " "))


@pytest.fixture
def package(tmp_path):
    """A copy of the package and its tests; of the bundled weights, links."""
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if source.is_file():
            shutil.copy(source, target)
        else:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "old_files"))
    for path in (ROOT / "ldm_us" / "weights").glob("*.safetensors"):
        (tmp_path / path.relative_to(ROOT)).symlink_to(path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def call(folder, *words, **environment):
    """A command in a folder: its exit code, and all that it said."""
    here = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        words, cwd=folder, env=os.environ | here | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_there_are_six_and_the_table_names_them_all():
    assert [change.number for change in CHANGES] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.number))
def test_a_row_of_the_table_is_what_the_change_is(change):
    _, files, lines, tests = change.row
    assert re.findall(r"`([^`]+)`", files) == re.findall(r"^\+\+\+ b/(\S+)$", change.diff, re.MULTILINE)
    added, removed = (len(re.findall(rf"^\{sign}(?!\{sign})", change.diff, re.MULTILINE)) for sign in "+-")
    assert lines == (f"+{added} -{removed}" if change.diff else "0")
    assert re.findall(r"`([^`]+)`", tests) == change.tests
    title = change.text.splitlines()[0]
    anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    assert f"(#{anchor})" in change.row[0]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.number))
def test_a_change_applies_and_the_copy_passes_its_tests_in_our_style(change, package):
    if change.diff:
        if shutil.which("git") is None:
            pytest.skip("git, which applies the diffs, is not installed")
        (package / "change.diff").write_text(change.diff)
        assert call(package, "git", "apply", "change.diff") == (0, "")
        (package / "change.diff").unlink()
    code, said = call(
        package,
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/changing/commands.py", *change.tests),
        CHANGE=str(change.number),
    )
    assert code == 0, said[-5000:]
    for words in (("check",), ("format", "--check")):
        code, said = call(package, sys.executable, "-m", "ruff", *words, "ldm_us", "weights_convert")
        assert code == 0, said


@pytest.mark.parametrize(("sentence", "table", "field"), NEW_FIELDS)
def test_the_version_of_before_refuses_a_new_file_in_the_words_of_the_page(sentence, table, field):
    values = config_to_dict(US128)
    assert field not in {each.name for each in dataclasses.fields(getattr(US128, table))}
    values[table][field] = True
    with pytest.raises(ValueError, match="unknown fields") as error:
        config_from_dict(values)
    assert str(error.value) == sentence


def test_the_page_quotes_a_refusal_for_each_change_that_adds_a_field():
    assert [(table, field) for _, table, field in NEW_FIELDS] == [
        ("control", "outline"),
        ("schedule", "cosine"),
        ("unet", "numbers"),
    ]
