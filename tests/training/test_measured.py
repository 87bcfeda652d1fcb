"""What stages measure at their end, and python -m ldm_us.training: priors and grain in the file, and refusals."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm_us.data.readers.datasets import read_datasets
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, read_metadata, save_model
from ldm_us.runtime.entry import run_command
from ldm_us.training.__main__ import main
from ldm_us.training.dataset import load_training_set
from ldm_us.training.measured import encode_records, latents_of, members, set_measured, shown_to_prior
from ldm_us.training.result import measure_latents, set_latents

SIDE = 104  # a multiple of micro's 8 pixels, and enough for three bands of grain


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images of another brightness each, in the layout of BUSI, with noise that no autoencoder holds."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in ("benign", "malignant", "normal"):
        (root / label).mkdir()
        for i in range(8):
            grey = 40 + 20 * i + generator.normal(0, 12, (SIDE, SIDE))
            name = f"{label} ({9001 + i})"
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / label / f"{name}.png")
            Image.new("L", (SIDE, SIDE), 255 * (label != "normal")).save(root / label / f"{name}_mask.png")
    return root


@pytest.fixture(scope="module")
def weights(micro, tmp_path_factory):
    """A model file of micro with a history."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(LatentDiffusion(micro), path, {"stage": "unet", "steps": "7"})
    return path


def call(*words):
    return run_command(lambda: main([str(word) for word in words]))


def test_the_command_adds_a_prior_and_leaves_every_other_tensor_and_the_history_as_they_were(
    weights, images, tmp_path, capsys
):
    out = tmp_path / "out.safetensors"
    assert call("prior", "--weights", weights, "--data", images, "--rank", 5, "--out", out) == 0
    assert "with the prior of 24 images" in capsys.readouterr().out
    before, after = load_file(weights), load_file(out)
    assert after.keys() - before.keys() == {"prior.mean", "prior.factor"}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: read_metadata(out)[name] for name in ("stage", "steps")} == {"stage": "unet", "steps": "7"}
    model = load_model(out)
    latents = encode_records(model, read_datasets([images]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(latents, 8).mean(dim=0)
    torch.testing.assert_close(model.prior.mean, pooled, rtol=1e-4, atol=1e-5)


def test_too_few_images_for_a_prior_and_images_too_small_for_grain_are_one_sentence(weights, images, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert call("prior", "--weights", weights, "--data", images, "--rank", 24, "--out", out) == 2
    assert "rank 24 needs more than 24 images, and there are 24" in capsys.readouterr().err
    assert call("grain", "--weights", weights, "--data", images, "--out", out) == 2
    assert "grain is measured on images of 96 pixels or more, not 16" in capsys.readouterr().err
    assert not out.exists()
    out.write_bytes(b"kept")
    assert call("prior", "--weights", weights, "--data", images, "--out", out) == 2
    assert "exists. Choose another name, or add --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"kept"


@pytest.fixture(scope="module")
def model(weights):
    return load_model(weights)


def test_the_vae_stage_measures_grain_and_forgets_the_prior_of_other_latents(model, images):
    data = load_training_set(read_datasets([images]), SIDE)
    model.set_prior(None)
    assert set_measured(model, data, "vae", decoder_only=False, flip=True) == []
    assert model.grain is not None
    assert model.config.vae.grain
    assert float(model.grain.gain.min()) > 0.02  # the noise alone is 12 of 255 grey levels
    model.set_grain(None)
    (note,) = set_measured(model, load_training_set(read_datasets([images]), 16), "vae", decoder_only=False, flip=True)
    assert "no grain is measured: that takes images of 96 pixels, not 16" in note
    (note,) = set_measured(
        model, load_training_set(read_datasets([images])[:3], SIDE), "vae", decoder_only=False, flip=True
    )
    assert "no grain is measured: that takes 4 images, not 3" in note
    assert model.grain is None


def test_the_unet_stage_measures_the_prior_of_the_latents_it_trained_on_with_mirror_images_only_where_it_mirrors(
    model, images
):
    data = load_training_set(read_datasets([images]), 16, with_pixels=False)
    generator = torch.Generator().manual_seed(0)
    data.moments.update({i: torch.randn(2, 8, 4, 4, generator=generator) for i in range(24)})
    both, alone = (latents_of(data, model.vae.scale, flip) for flip in (True, False))
    assert len(both) == 2 * len(alone) == 48
    assert torch.equal(alone[3], model.vae.scale * data.moments[3][0, :4])
    assert set_measured(model, data, "unet", decoder_only=False, flip=True) == []
    assert model.prior.rank == 20
    torch.testing.assert_close(model.prior.mean.mean(), both.mean(), rtol=1e-4, atol=1e-5)
    few, before = load_training_set(read_datasets([images])[:4], 16, with_pixels=False), model.prior
    few.moments.update({i: data.moments[i] for i in range(4)})
    (note,) = set_measured(model, few, "unet", decoder_only=False, flip=True)
    assert "more than 20 images, not 4; that of the start is kept" in note
    assert model.prior is before


def test_a_prompt_with_sixty_images_gets_a_prior_of_its_own_and_a_caption_of_one_image_does_not():
    prompts = ["benign"] * 60 + ["normal"] * 59 + [f"caption {i}" for i in range(30)]
    assert members(prompts, 20) == {"benign": list(range(60))}
    assert members(prompts, 60) == {}, "a rank of 60 takes more than 60 images"
    assert members(["benign"] * 300, 20) == {}, "one prompt is all images"
    assert members(["x" * 101] * 100 + ["a"] * 100, 20) == {"a": list(range(100, 200))}, "no config holds the name"
    many = [str(i % 9) for i in range(905)]
    assert sorted(members(many, 20)) == [*"01234567"], "a config holds eight, the most common"


def test_the_stage_gives_prompts_of_many_images_their_own_prior_mirror_images_included(model, images):
    data = load_training_set(read_datasets([images]), 16, with_pixels=False)
    times = 15  # 24 images, 8 of each class, as often
    data.records, data.prompt_index = data.records * times, data.prompt_index.repeat(times)
    generator = torch.Generator().manual_seed(0)
    prompts = [data.prompts[i] for i in data.prompt_index.tolist()]
    benign = next(prompt for prompt in data.prompts if "benign" in prompt)
    for i, prompt in enumerate(prompts):
        data.moments[i] = torch.randn(2, 8, 4, 4, generator=generator) + 5 * (prompt == benign)
    assert set_measured(model, data, "unet", decoder_only=False, flip=True) == []
    assert set(model.prior.prompts) == set(data.prompts) - {""}
    apart = model.prior.of(benign).mean - model.prior.mean
    assert float(apart.mean()) == pytest.approx(5 * 2 / 3 * model.vae.scale, rel=0.05)
    model.set_prior(None)


def test_a_schedule_that_ends_in_noise_needs_no_prior_and_its_vae_stage_ends_with_white_latents(
    micro, images, tmp_path, capsys
):
    """Whitening Eq. 1: mean 0 and std 1 by channel, with no scale left to multiply."""
    schedule = dataclasses.replace(micro.schedule, prediction="v", zero_terminal_snr=True, spacing="trailing")
    config = dataclasses.replace(micro, schedule=schedule, vae=dataclasses.replace(micro.vae, whitened=True))
    torch.manual_seed(0)
    model = LatentDiffusion(config)
    data = load_training_set(read_datasets([images]), SIDE)
    set_latents(model, data)
    assert model.vae.scale == model.config.vae.scale == 1.0
    means, stds = measure_latents(model, data)
    assert means.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 4, abs=1e-4)
    variance = means.var(dim=(0, 2, 3)) + (stds**2).mean(dim=(0, 2, 3))
    assert variance.tolist() == pytest.approx([1.0] * 4, rel=1e-3)
    assert set_measured(model, data, "unet", decoder_only=False, flip=True) == []
    assert model.prior is None
    save_model(model, tmp_path / "model.safetensors", {})
    out = tmp_path / "out.safetensors"
    assert call("prior", "--weights", tmp_path / "model.safetensors", "--data", images, "--out", out) == 2
    assert "its schedule ends in pure noise, so that z_T has no start prior" in capsys.readouterr().err
    assert not out.exists()


def test_the_prior_is_measured_on_the_same_images_whatever_the_last_steps_have_seen():
    assert shown_to_prior(20) == [], "too few, so that none of them need be encoded"
    assert shown_to_prior(21) == list(range(21))
    index = shown_to_prior(6000)
    assert (len(index), index[0], index[-1]) == (600, 0, 5990)
