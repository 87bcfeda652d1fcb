"""Inpainting: only the region changes, pixels outside come back exactly, and what is refused."""

import numpy as np
import pytest
import torch

from ldm_us.config import BUNDLED, ScheduleConfig
from ldm_us.data.organ import BREAST
from ldm_us.data.phantom.simulate import simulate
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.editing import encode_images
from ldm_us.diffusion.guidance import Guidance, prepare_conditions
from ldm_us.diffusion.inpainting import composed, inpaint, noise_again, region_of_latents, replace_known
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, decode
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import to_picture

SCHEDULE = make_schedule(ScheduleConfig())
PROMPTS = ["a cyst", "a breast"]
WALK = Sampling(steps=4)


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    return LatentDiffusion(micro).eval().requires_grad_(False)


def steps_of(model, x, region, conditions, *, seeds, walk, resample=1):
    """Every Step of an inpainting; prompts alone are conditions too."""
    if isinstance(conditions, list):
        conditions = prepare_conditions(model, conditions)
    return list(inpaint(model, x, region, conditions, generators_of(seeds), walk, resample))


def inpainted(model, x, region, conditions, *, paste=True, **options):
    """The images that an inpainting ends with."""
    last = steps_of(model, x, region, conditions, **options)[-1]
    return composed(model, last.z, x, region, options["walk"], generators_of(options["seeds"]), paste)


@pytest.fixture(scope="module")
def x():
    """Two images of whole grey levels, as read from a file."""
    return torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(3)) / 127.5 - 1


@pytest.fixture(scope="module")
def region():
    region = torch.zeros(2, 1, 16, 16)
    region[0, :, 3:8, 5:11] = region[1, :, 8:, :7] = 1
    return region


def test_pixels_outside_the_region_are_the_image_to_the_bit_in_8_bits_and_all_inside_are_new(model, x, region):
    images = inpainted(model, x, region, PROMPTS, seeds=[0, 1], walk=WALK)
    for image, before, each in zip(images, x, region, strict=True):
        outside = each[0] == 0
        after, original = (np.asarray(to_picture(y)) for y in (image, before / 2 + 0.5))  # (16, 16, 3)
        assert (after[outside.numpy()] == original[outside.numpy()]).all()
        assert float((image - before / 2 - 0.5)[:, ~outside].abs().mean()) > 0.05


def test_without_pasting_pixels_outside_are_the_reconstruction_of_the_image_to_the_bit(model, x, region):
    images = inpainted(model, x, region, PROMPTS, seeds=[0, 1], walk=WALK, paste=False)
    pasted = inpainted(model, x, region, PROMPTS, seeds=[0, 1], walk=WALK)
    outside = region.expand_as(x) == 0
    assert torch.equal(images[outside], decode(model, encode_images(model, x))[outside])
    assert torch.equal(images[~outside], pasted[~outside])


def test_the_decoded_latents_are_those_of_the_image_outside_and_new_inside(model, x, region):
    decoded = steps_of(model, x, region, PROMPTS, seeds=[0, 1], walk=WALK)[-1].z
    outside = region_of_latents(region, 4).expand_as(decoded) == 0
    z_0 = encode_images(model, x)
    assert torch.equal(decoded[outside], z_0[outside])
    assert not torch.isclose(decoded[~outside], z_0[~outside]).any()


def test_a_latent_belongs_to_the_region_where_one_of_its_pixels_does():
    region = torch.zeros(1, 1, 8, 8)
    region[..., 3, 4] = 1
    assert region_of_latents(region, 4)[0, 0].tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("t", [1, 501, 981])
def test_known_latents_are_noised_to_the_timestep_and_the_region_is_left_alone(t):
    """RePaint Eq. 8, element by element in plain floats."""
    z, z_0, noise = torch.randn(3, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).view(1, 1, 2, 2)
    replaced = replace_known(SCHEDULE, z, z_0, inside, t, noise)
    a = float(SCHEDULE.alpha_bar[t])
    for c in range(2):
        for i in range(2):
            for j in range(2):
                known = a**0.5 * float(z_0[0, c, i, j]) + (1 - a) ** 0.5 * float(noise[0, c, i, j])
                expected = float(z[0, c, i, j]) if i == j else known
                assert float(replaced[0, c, i, j]) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(replace_known(SCHEDULE, z, z_0, inside, -1, noise), torch.where(inside > 0, z, z_0))


def test_noise_added_again_leads_to_the_noise_level_of_the_timestep():
    """DDPM Eq. 2, one beta after the other, from latents at t_prev to t; from the clean image where t_prev is -1."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for t, t_prev in ddim_timesteps(SCHEDULE, 5):
        signal, variance = 1.0, 0.0
        for beta in betas[t_prev + 1 : t + 1]:
            signal, variance = (1 - beta) ** 0.5 * signal, (1 - beta) * variance + beta
        assert float(noise_again(SCHEDULE, one, t_prev, t, zero)) == pytest.approx(signal, rel=1e-12)
        assert float(noise_again(SCHEDULE, zero, t_prev, t, one)) ** 2 == pytest.approx(variance, rel=1e-9)
    assert float(noise_again(SCHEDULE, zero, -1, 1, one)) == pytest.approx(0.0413, abs=1e-4)
    assert float(noise_again(SCHEDULE, zero, -1, 1, one, SCHEDULE.final_alpha_bar)) == pytest.approx(0.0293, abs=1e-4)


@pytest.mark.parametrize(
    ("walk", "new"), [(Sampling("ddim", 4), False), (Sampling("ddim", 4, eta=0.5), True), (Sampling("ddpm", 4), True)]
)
def test_known_latents_get_a_new_noise_every_time_unless_the_sampler_has_none(model, x, region, monkeypatch, walk, new):
    """RePaint algorithm 1, line 4, at every step and repeat; at eta 0 one noise for all."""
    noises = []
    monkeypatch.setattr(
        "ldm_us.diffusion.inpainting.replace_known", lambda *a: noises.append(a[-1]) or replace_known(*a)
    )
    inpainted(model, x, region, PROMPTS, seeds=[0, 1], walk=walk, resample=3)
    noises = torch.stack(noises)  # (13, 2, c, h, w): one before the first step
    assert len(noises) == 1 + 4 * 3
    pairs = [torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i]]
    assert set(pairs) == {not new}
    assert float(noises.std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("walk", [Sampling("ddim", 4), Sampling("ddpm", 4)])
def test_every_step_shows_the_known_latents_at_its_level_and_the_last_one_the_latents_of_the_sample(
    model, x, region, monkeypatch, walk
):
    replaced = []
    monkeypatch.setattr(
        "ldm_us.diffusion.inpainting.replace_known",
        lambda *a: replaced.append((a[4], replace_known(*a))) or replaced[-1][1],
    )
    steps = steps_of(model, x, region, PROMPTS, seeds=[0, 1], walk=walk, resample=2)
    images = composed(model, steps[-1].z, x, region, walk, [])
    grid = ddim_timesteps(SCHEDULE, 4)
    assert [step.t for step in steps] == [t for t, _ in grid]
    for step, (_, t_prev), (level, z) in zip(steps, grid, replaced[2::2], strict=True):
        assert level == t_prev
        assert torch.equal(step.z, z)
    end, inside = decode(model, steps[-1].z), region.expand_as(x) > 0
    assert torch.equal(end[inside], images[inside])
    outside = region_of_latents(region, 4).expand_as(steps[-1].z) == 0
    assert torch.equal(steps[-1].z[outside], encode_images(model, x)[outside])


def test_the_network_is_called_once_a_step_times_the_repeats(model, x, region):
    timesteps = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: timesteps.append(int(args[1][0])))
    try:
        inpainted(model, x, region, PROMPTS, seeds=[0, 1], walk=WALK, resample=3)
    finally:
        hook.remove()
    assert timesteps == [t for t, _ in ddim_timesteps(SCHEDULE, 4) for _ in range(3)]


def test_an_inpainting_depends_on_its_own_seed_alone(model, x, region):
    options = {"walk": Sampling("ddpm", 4), "resample": 2}
    both = inpainted(model, x, region, PROMPTS, seeds=[5, 6], **options)
    alone = inpainted(model, x[1:], region[1:], ["a breast"], seeds=[6], **options)
    torch.testing.assert_close(alone[0], both[1], rtol=0, atol=1e-5)


def test_on_the_bundled_model_the_outside_differs_by_no_more_than_the_autoencoder_and_a_new_lesion_is_dark():
    model = load_model(BUNDLED)
    x = torch.tensor(simulate(77, 0, "normal", 128).image).float().div(127.5).sub(1).expand(1, 3, -1, -1)
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    away = ((rows - 50) / 14) ** 2 + ((columns - 64) / 20) ** 2
    mask, region = ((away < bound).float()[None, None] for bound in (1.0, 2.0))
    control = ControlTerm(model.controlnet, model.controlnet.hint_of(mask), 2.0)
    conditions = prepare_conditions(model, [BREAST.prompt("benign")], "", Guidance(1.0), [control])
    before, reconstruction = x / 2 + 0.5, decode(model, encode_images(model, x))
    options = {"seeds": [0], "walk": Sampling(steps=20)}
    plain, pasted = (inpainted(model, x, region, conditions, **options, paste=paste) for paste in (False, True))
    outside = (region == 0).expand_as(x)
    error, own_error = (float(((y - before)[outside] ** 2).mean()) ** 0.5 for y in (plain, reconstruction))
    assert error <= own_error
    assert torch.equal(pasted[outside], before[outside])
    assert float(pasted[:, :, mask[0, 0] > 0].mean()) < float(before[:, :, mask[0, 0] > 0].mean()) - 0.08


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": torch.zeros(2, 1, 16, 16)}, "inpainting region 0 is empty: nothing would change"),
        ({"region": torch.ones(2, 1, 8, 16)}, r"inpainting regions of shape .*: these images need \(2, 1, 16, 16\)"),
        ({"region": torch.full((2, 1, 16, 16), 0.5)}, "inpainting regions hold other values than 0 and 1"),
        ({"x": torch.zeros(2, 1, 16, 16)}, r"images of shape \(2, 1, 16, 16\): use \(batch, 3, height, width\)"),
        ({"resample": 0}, r"resample 0: use 1 \(each step once\) or more"),
        ({"seeds": [1]}, "1 seeds for 2 images"),
    ],
)
def test_what_does_not_fit_is_refused(model, x, region, change, message):
    options = {"x": x, "region": region, "conditions": PROMPTS, "seeds": [0, 1], "walk": WALK} | change
    with pytest.raises(ValueError, match=message):
        inpainted(model, **options)
