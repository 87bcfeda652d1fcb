"""Fixtures: a micro model with a ControlNet that does something, masks of each class, and sample.py run in here."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command

SHORT = ["--steps", "2", "--n", "2"]
OLD_LINEAGE = {"lineage": '[{"stage": "unet", "data": ["phantoms"]}]'}  # of before there was a record of words: breast


def trained(model):
    """Give the zero convolutions of a ControlNet values, as training would."""
    controlnet = model.add_controlnet()
    for conv in [*controlnet.zero_convs, controlnet.zero_conv_middle, controlnet.hint_network.conv_out]:
        torch.nn.init.normal_(conv.weight, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def weights(micro, tmp_path_factory):
    """A model file of micro with a ControlNet."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(trained(LatentDiffusion(micro)), path, OLD_LINEAGE)
    return path


@pytest.fixture(scope="session")
def masks(tmp_path_factory):
    """Two masks of each lesion class and an empty one of class normal, 16x16, in the layout of BUSI."""
    root = tmp_path_factory.mktemp("masks")
    for label in ("benign", "malignant", "normal"):
        (root / label).mkdir()
        for number in (1, 2):
            drawn = np.zeros((16, 16), np.uint8)
            if label != "normal":
                drawn[2 * number : 12, 3 : 8 + number] = 255
            Image.fromarray(drawn).save(root / label / f"{label} ({number})_mask.png")
            Image.new("L", (16, 16), 90).save(root / label / f"{label} ({number}).png")
    return root


@pytest.fixture
def run(weights):
    """A function: sample with the micro model, require exit code 0."""

    def call(out, *options):
        words = ["--weights", weights, "--out", out, *SHORT, *options]
        assert run_command(partial(sample.main, [str(word) for word in words])) == 0

    return call


@pytest.fixture
def refused(weights, capsys):
    """A function: sample.py, require exit code 2 and one sentence, and return it."""

    def call(out, *options):
        words = ["--weights", weights, "--out", out, *SHORT, *options]
        capsys.readouterr()
        assert run_command(partial(sample.main, [str(word) for word in words])) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line.removeprefix("error: ")

    return call


def contents(folder):
    """Every file below a folder and its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
