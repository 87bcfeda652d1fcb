"""docs/changing.md, change 1: a ControlNet that is shown the mask, its outline and the depth of every pixel."""

from dataclasses import replace

import pytest
import torch

import sample
from ldm_us.config import BUNDLED, PRESETS
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, save_model
from tests.conftest import MICRO

OUTLINED = replace(MICRO, name="outlined", control=replace(MICRO.control, outline=True))


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A ControlNet of two steps on a model without one."""
    folder = tmp_path_factory.mktemp("outline")
    save_model(LatentDiffusion(MICRO), folder / "base.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "outlined", OUTLINED)
        flags = ("--preset", "outlined", "--sample-every", 2)
        return run("controlnet", folder / "run", *flags, weights=folder / "base.safetensors")


def test_the_hint_is_the_mask_the_pixels_around_it_and_the_depth():
    model = LatentDiffusion(OUTLINED)
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, 0, 4:9, 5:7] = 1
    mask, outline, depth = model.add_controlnet().hint_of(masks)[0]
    assert torch.equal(mask, masks[0, 0])
    expected = torch.zeros(16, 16)
    expected[3:10, 4:8] = 1
    assert torch.equal(outline, expected - mask)
    assert depth[:, 0].tolist() == pytest.approx([row / 15 for row in range(16)])


def test_a_controlnet_is_trained_and_sampled_with_it_and_its_file_says_so(trained, busi, tmp_path):
    assert load_model(trained.path).config == OUTLINED
    mask = busi / "benign" / "benign (9001)_mask.png"
    argv = ["--weights", trained.path, "--mask", mask, "--n", 1, "--steps", 2, "--out", tmp_path / "out"]
    assert sample.main([str(word) for word in argv]) == 0


def test_a_controlnet_of_before_is_shown_three_times_the_mask():
    model = load_model(BUNDLED, parts=("controlnet",))
    masks = torch.rand(1, 1, 16, 16).round()
    assert torch.equal(model.controlnet.hint_of(masks), masks.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("format", ["diffusers", "controlnet"])
def test_an_export_notes_what_other_programs_would_not_draw(format, export, trained, tmp_path):
    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    code, text, _ = export(trained.path, "--format", format, "--out", out)
    assert code == 0
    assert "control.outline True" in text
