"""docs/changing.md, change 3: a smaller denoiser on the bundled autoencoder and text encoder."""

import pytest
import torch

import sample
from ldm_us.config import BUNDLED, PRESETS
from ldm_us.files.checkpoint import load_model


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A denoiser of two steps, on images of 32 pixels."""
    flags = ("--preset", "us128_small", "--size", 32)
    return run("unet", tmp_path_factory.mktemp("small") / "run", *flags, weights=BUNDLED)


def test_the_denoiser_is_a_quarter_of_it_and_the_rest_is_the_bundled_one(trained):
    before, after = load_model(BUNDLED), load_model(trained.path)
    assert after.config.unet == PRESETS["us128_small"].unet
    sizes = [sum(value.numel() for value in model.unet.parameters()) for model in (before, after)]
    assert sizes[1] < 0.3 * sizes[0]
    for part in ("vae", "text"):
        state = before.get_submodule(part).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in after.get_submodule(part).state_dict().items())
    assert after.config.vae == before.config.vae, "the scale of the latents comes with it"


def test_it_samples(trained, tmp_path):
    argv = ["--weights", trained.path, "--class", "benign", "--n", 1, "--steps", 1, "--out", tmp_path / "out"]
    assert sample.main([str(word) for word in argv]) == 0
