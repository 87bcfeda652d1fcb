"""Image to image: how far the noise goes, how many steps are left, and what is refused."""

import pytest
import torch

from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.editing import encode_images, first_step, image_to_image
from ldm_us.diffusion.guidance import prepare_conditions
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, decode

PROMPTS = ["a cyst", "a breast"]


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    return LatentDiffusion(micro).eval().requires_grad_(False)


def drawn(model, x, prompts=PROMPTS, *, strength, seeds, sampling=None):
    """The images that a walk ends with."""
    conditions = prepare_conditions(model, prompts)
    *_, last = image_to_image(model, x, conditions, generators_of(seeds), sampling or Sampling(steps=4), strength)
    return decode(model, last.z)


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_strength_is_the_share_of_the_steps_that_are_walked():
    assert [first_step(s, 50) for s in (0.0, 0.001, 0.02, 0.5, 0.7, 1.0)] == [50, 49, 49, 25, 15, 0]


def test_strength_0_is_the_reconstruction_of_the_autoencoder_bit_for_bit(model, x):
    edited = drawn(model, x, strength=0.0, seeds=[0, 1], sampling=Sampling(steps=4))
    assert torch.equal(edited, decode(model, encode_images(model, x)))


def test_the_way_starts_from_the_latents_noised_to_the_first_timestep_that_is_walked(model, x):
    """SDEdit section 3, with the noise of each image's own seed, added in float64."""
    seen = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: seen.append((args[0], int(args[1][0]))))
    try:
        drawn(model, x, strength=0.5, seeds=[7, 8], sampling=Sampling(steps=4))
    finally:
        hook.remove()
    grid = [t for t, _ in ddim_timesteps(model.schedule, 4)]
    assert [t for _, t in seen] == grid[2:]
    noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (7, 8)]).double()
    alpha_bar = model.schedule.alpha_bar[grid[2]]
    z_t = alpha_bar.sqrt() * encode_images(model, x).double() + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(seen[0][0][:2].double(), z_t, rtol=1e-5, atol=1e-6)


def test_more_strength_goes_farther_from_the_image(model, x):
    start = decode(model, encode_images(model, x))
    edits = [drawn(model, x, strength=s, seeds=[0, 1], sampling=Sampling(steps=10)) for s in (0.1, 0.4, 0.9)]
    distances = [float((edit - start).abs().mean()) for edit in edits]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_an_edit_depends_on_its_own_seed_alone(model, x):
    both = drawn(model, x, strength=0.5, seeds=[5, 6], sampling=Sampling(eta=1.0, steps=4))
    alone = drawn(model, x[1:], ["a breast"], strength=0.5, seeds=[6], sampling=Sampling(eta=1.0, steps=4))
    torch.testing.assert_close(alone[0], both[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(model, x, strength):
    with pytest.raises(ValueError, match=r"strength .*: use 0 \(the image as it is\) to 1"):
        drawn(model, x, strength=strength, seeds=[0, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 1, 16, 16), r"images of shape \(2, 1, 16, 16\): use \(batch, 3, height, width\)"),
        (torch.zeros(3, 16, 16), r"images of shape \(3, 16, 16\): use \(batch, 3, height, width\)"),
        (torch.zeros(2, 3, 16, 18), "image size 18: micro needs a multiple of 8 pixels"),
        (torch.full((2, 3, 16, 16), 255.0), r"images from 255 to 255: scale them to -1\.\.1"),
        (torch.zeros(1, 3, 16, 16), "1 images or latents for 2 prompts: give one per prompt"),
    ],
)
def test_an_image_of_another_shape_or_range_is_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        drawn(model, wrong, strength=0.5, seeds=[0, 1])


def test_too_few_seeds_are_refused(model, x):
    with pytest.raises(ValueError, match="1 seeds for 2 images: give one per image"):
        drawn(model, x, strength=0.5, seeds=[0])
