"""docs/changing.md, change 5: the depth of an image, in cm, joins the timestep."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.config import BUNDLED, PRESETS
from ldm_us.diffusion.guidance import Guidance, guided_prediction, prepare_conditions
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.networks.clip import numbers_of
from ldm_us.networks.unet import UNet
from ldm_us.training.start import random_model
from tests.conftest import MICRO

DEPTH = replace(MICRO, name="depth", unet=replace(MICRO.unet, numbers=("cm",)))


def caption(cm):
    return f"Ultrasound image of a breast, depth {cm} cm"


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A denoiser of two steps on images whose captions say how deep they are."""
    folder = tmp_path_factory.mktemp("depth")
    (folder / "images").mkdir()
    lines = []
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": caption(2.5 + i)}))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    save_model(LatentDiffusion(MICRO), folder / "base.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "depth", DEPTH)
        start = {"weights": folder / "base.safetensors", "data": folder / "images"}
        return run("unet", folder / "run", "--preset", "depth", "--sample-every", 2, "--validate-every", 2, **start)


def test_the_number_before_a_unit_is_read_from_each_prompt():
    prompts = [caption(4.5), caption(12), "", "8 cm wide, at 7.5MHz", "cm"]
    depth, frequency = numbers_of(prompts, ("cm", "MHz"))
    assert depth.tolist() == [4.5, 12, 0, 8, 0]
    assert frequency.tolist() == [0, 0, 0, 7.5, 0]
    assert numbers_of(prompts, ()) == []


def test_a_prediction_depends_on_the_number_of_its_own_sample():
    torch.manual_seed(0)
    unet = UNet(DEPTH.unet).eval().requires_grad_(False)
    z_t, t, context = torch.randn(1, 4, 4, 4).expand(3, -1, -1, -1), torch.full((3,), 500), torch.zeros(3, 77, 8)
    shallow, deep, again = unet(z_t, t, context, None, torch.tensor([3.0, 9.0, 3.0]))
    assert not torch.allclose(shallow, deep, atol=1e-4)
    torch.testing.assert_close(shallow, again)
    with pytest.raises(ValueError, match="zip"):
        unet(z_t, t, context)


def test_training_moves_its_weights(trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "depth", DEPTH)
        start = random_model("depth", 0).state_dict()
    names = [name for name in start if name.startswith("unet.numbers.0.")]
    assert len(names) == 4
    assert not any(torch.equal(start[name], trained.weights[name]) for name in names)


def test_a_prompt_is_drawn_with_its_number_and_a_negative_prompt_with_its_own(trained):
    model = load_model(trained.path)
    z_t, t, seen = torch.randn(1, 4, 4, 4), torch.tensor([500]), {}
    same_words = prepare_conditions(model, ["a"]).context
    for guidance in (1.0, 3.0):
        for negative, prompt in (("", "3 cm"), ("", "9 cm"), ("3 cm", "3 cm")):
            conditions = prepare_conditions(model, [prompt], negative, Guidance(guidance))
            conditions = replace(conditions, context=same_words, context_negative=same_words)
            seen[guidance, negative, prompt] = guided_prediction(model, z_t, t, conditions)
        assert not torch.equal(seen[guidance, "", "3 cm"], seen[guidance, "", "9 cm"])
    torch.testing.assert_close(seen[3.0, "3 cm", "3 cm"], seen[1.0, "", "3 cm"])


def test_sample_takes_the_number_from_the_prompt(trained, tmp_path):
    argv = ["--weights", trained.path, "--prompt", caption(4.5), "--n", 1, "--steps", 2, "--out", tmp_path / "out"]
    assert sample.main([str(word) for word in argv]) == 0


def test_a_file_of_before_takes_no_number():
    assert load_model(BUNDLED, parts=()).config.unet.numbers == ()


@pytest.mark.parametrize("format", ["compvis", "diffusers"])
def test_an_export_is_refused_for_no_other_program_has_a_place_for_it(format, trained, export, tmp_path):
    code, _, error = export(trained.path, "--format", format, "--out", tmp_path / "out.safetensors")
    assert code == 2
    assert "depth: no other program has a place for numbers.0.linear_1, numbers.0.linear_2 of its unet" in error
    assert not list(tmp_path.iterdir())
