"""train.py and sample.py: found in a checkout, and as commands of an installation, wherever one calls them from."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ldm_us.runtime import scripts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which pip installed the package, without its weights."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("pip or setuptools is not installed")
    folder = tmp_path_factory.mktemp("installed")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "train.py", "sample.py"):
        (folder / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    for name in ("ldm_us", "weights_convert"):
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [*pip, "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def call(installed, tmp_path):
    """A function: run a program with the installation in its path, in an empty folder."""

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(("command", "script"), [("ldm-us-train", "train.py"), ("ldm-us-sample", "sample.py")])
def test_an_installed_command_is_the_script_of_the_checkout(installed, call, command, script):
    checkout = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True)
    assert call(installed / "bin" / command, "--help").stdout == checkout.stdout != ""
    assert (installed / "ldm_us" / "scripts" / script).read_bytes() == (ROOT / script).read_bytes()


def test_an_installed_command_refuses_in_one_sentence(installed, call):
    done = call(installed / "bin" / "ldm-us-sample", "--weights", "none.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.safetensors: no such file.")


def test_an_installation_finds_its_own_recipes_and_takes_no_name_from_others(installed, call):
    for script in ("train.py", "sample.py"):
        code = f"from ldm_us.runtime.scripts import script_path; print(script_path({script!r}))"
        assert Path(call(sys.executable, "-c", code).stdout.strip()) == installed / "ldm_us" / "scripts" / script
    tops = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert tops == {"bin", "ldm_us", "weights_convert"}
    assert (installed / "ldm_us" / "py.typed").is_file()


def test_in_a_checkout_the_recipes_are_those_at_the_top():
    assert scripts.script_path("train.py") == ROOT / "train.py"
    assert scripts.script_path("sample.py") == ROOT / "sample.py"


def test_an_installation_without_its_recipes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(scripts, "PACKAGE", tmp_path / "ldm_us")
    with pytest.raises(ValueError, match=r"^train\.py is neither beside .* nor in its folder scripts\."):
        scripts.script_path("train.py")
