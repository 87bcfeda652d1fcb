"""The page as a whole: it holds no logic, stays small, can be built for every model, and names what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import save_model
from ldm_us.studio import page
from ldm_us.studio.rooms import Rooms
from ldm_us.synthesis.serving.engine import Engine
from tests.synthesis.conftest import OLD_LINEAGE

ROOT = Path(__file__).parents[2]
MOST_LINES = 600


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_is_small():
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "ldm_us/studio").glob("**/*.py"))
    assert lines <= MOST_LINES


def test_without_gradio_the_modules_load_and_the_command_says_which_extra_is_missing():
    missing = "import sys; sys.modules['gradio'] = None\n"
    assert run(f"{missing}import ldm_us.studio.page, ldm_us.studio.rooms").returncode == 0
    hidden = "import importlib.util as u; find = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *more: None if name == 'gradio' else find(name, *more)\n"
    done = run(f"{hidden}import runpy, sys; sys.argv = ['studio']; runpy.run_module('ldm_us.studio', None, '__main__')")
    assert done.returncode == 2
    assert done.stderr == "error: gradio is not installed. Install the extra ui: `pip install -e '.[ui]'`.\n"


def test_a_model_that_is_none_is_a_sentence(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[ui]'")
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    words = ["-m", "ldm_us.studio", "--port", "0", "--weights", str(tmp_path / "model.safetensors")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def texts(built):
    """All that the page of a model says, as Gradio is told."""
    return str(built.get_config_file())


def test_the_page_of_a_model_without_a_controlnet_says_what_to_train(rooms, micro, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e '.[ui]'")
    torch.manual_seed(0)
    save_model(LatentDiffusion(micro), tmp_path / "plain.safetensors", OLD_LINEAGE)
    plain = texts(page.build(Rooms(Engine(tmp_path / "plain.safetensors", "cpu"), tmp_path)))
    assert "train.py controlnet" in plain
    assert "Follow the mask" not in plain
    full = texts(page.build(rooms))
    assert "Follow the mask" in full
    assert str(tmp_path) not in full + plain


def test_every_script_and_style_of_the_page_lies_in_the_project():
    own = "".join((ROOT / "ldm_us/studio" / name).read_text() for name in ("page.js", "page.css"))
    own += "".join(path.read_text() for path in (ROOT / "ldm_us/studio").glob("*.html"))
    assert "http" not in own
    assert "@import" not in own
