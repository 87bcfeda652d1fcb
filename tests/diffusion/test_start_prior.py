"""The start prior: its moments in closed form, what it changes of a sample and what not, and how it is kept."""

import dataclasses

import numpy as np
import pytest
import torch

from ldm_us.config import ScheduleConfig
from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.guidance import prepare_conditions
from ldm_us.diffusion.inpainting import inpaint
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import draw, generators_of
from ldm_us.diffusion.sampling import Sampling, draw_start, generate
from ldm_us.diffusion.start_prior import POOLED, estimate_prior, estimate_priors, start_latents
from ldm_us.files.checkpoint import load_model, save_model

SCHEDULE = make_schedule(ScheduleConfig())


def latents_like_images(count, seed=0):
    """(count, 4, 16, 16): a mean with a slope, two patterns of random strength, and white noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(1, -1, 16)[:, None].expand(16, 16)
    patterns = torch.stack([rows, rows.T])
    strength = torch.randn(count, 4, 2, generator=generator) * torch.tensor([0.8, 0.3])
    smooth = 0.5 + rows + torch.einsum("b c p, p h w -> b c h w", strength, patterns)
    return smooth + 0.05 * torch.randn(count, 4, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def model(micro):
    """A model whose prior is that of such latents."""
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    model.set_prior(estimate_prior(latents_like_images(400), rank=8))
    return model.eval().requires_grad_(False)


def test_the_mean_and_the_covariance_are_those_of_the_pooled_latents():
    """StartPrior Eq. 1, at full rank: L L^T is numpy's covariance of the 8x8 means, element by element."""
    latents = latents_like_images(400)[:, :1]
    prior = estimate_prior(latents, rank=64)
    pooled = latents.double().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2)).flatten(1).numpy()
    factor = prior.factor.double().flatten(1)
    torch.testing.assert_close(prior.mean.double().flatten(), torch.from_numpy(pooled.mean(axis=0)), rtol=0, atol=1e-6)
    covariance = torch.from_numpy(np.cov(pooled.T))
    torch.testing.assert_close(factor.T @ factor, covariance, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_starts_have_the_mean_and_the_spread_of_noised_training_latents_at_the_first_timestep(steps):
    """StartPrior Eq. 1 and DDPM Eq. 4: the moments of z_T over many draws against q_sample of the latents."""
    latents = latents_like_images(2000)
    prior = estimate_prior(latents, rank=8)
    t = ddim_timesteps(SCHEDULE, steps)[0][0]
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(2000, 4, 16, 16, generator=generator)
    w = torch.randn(2000, 8, generator=generator)
    z = start_latents(SCHEDULE, prior, torch.full((2000,), t), eps, w)
    a = float(SCHEDULE.alpha_bar[t])
    torch.testing.assert_close(z.mean(dim=0), a**0.5 * latents.mean(dim=0), rtol=0, atol=0.15)
    noised = a**0.5 * latents + (1 - a) ** 0.5 * torch.randn(2000, 4, 16, 16, generator=generator)
    for rows in (slice(0, 4), slice(12, 16)):  # the spread of the images' means, at the top and at the bottom
        found, expected = (float(each[:, :, rows].mean(dim=(2, 3)).std()) for each in (z, noised))
        assert found == pytest.approx(expected, rel=0.05)


def test_a_sample_still_depends_on_its_own_seed_alone(model):
    sampling = Sampling(steps=3, eta=1.0, guidance=2.0)
    together = generate(model, ["a", "b", "c"], seeds=[5, 6, 7], sampling=sampling)
    alone = generate(model, ["b"], seeds=[6], sampling=sampling)
    assert torch.equal(together[1], alone[0])


def test_without_a_prior_and_with_the_option_off_the_noise_is_that_of_before_bit_for_bit(model, micro):
    sampling = Sampling(steps=3).resolved(micro, masked=False)
    eps = draw((2, 4, 4, 4), generators_of([3, 4]))
    off = draw_start(model, dataclasses.replace(sampling, prior=False), generators_of([3, 4]), ["a", "b"])
    plain = LatentDiffusion(micro)
    assert torch.equal(off, eps)
    assert torch.equal(draw_start(plain, sampling, generators_of([3, 4]), ["a", "b"]), eps)
    assert not torch.equal(draw_start(model, sampling, generators_of([3, 4]), ["a", "b"]), eps)


def test_given_noise_is_taken_as_it_is(model):
    z_T = draw((1, 4, 4, 4), generators_of([3]))
    on, off = (generate(model, ["a"], z_T=z_T, sampling=Sampling(steps=2, prior=prior)) for prior in (True, False))
    assert torch.equal(on, off)


@pytest.fixture(scope="module")
def bright(micro):
    """A model with a prior of its own for "bright", of the second half of its latents, which lie 3 higher."""
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    latents = latents_like_images(400)
    latents[200:] += 3
    model.set_prior(estimate_priors(latents, 8, {"bright": range(200, 400)}))
    return model.eval().requires_grad_(False)


def test_a_prompt_with_a_prior_of_its_own_starts_from_that_and_every_other_from_that_of_all(bright):
    """StartPrior Eq. 1, with mu and L of the images of one prompt."""
    own, others = bright.prior.of("bright"), bright.prior.of("dark")
    assert others is bright.prior
    expected = estimate_prior(latents_like_images(400)[200:] + 3, rank=8)
    torch.testing.assert_close(own.mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.factor, expected.factor, rtol=0, atol=1e-4)
    assert float(own.mean.mean() - others.mean.mean()) == pytest.approx(1.5, abs=0.05)
    sampling = Sampling(steps=2).resolved(bright.config, masked=False)
    z = [draw_start(bright, sampling, generators_of([3, 3]), prompts) for prompts in (["bright", "a"], ["a", "bright"])]
    assert torch.equal(z[0][0], z[1][1])
    assert torch.equal(z[0][1], z[1][0])
    assert not torch.equal(z[0][0], z[0][1])


def test_what_is_drawn_anew_in_an_image_starts_from_the_prior_of_its_prompt_too(bright):
    conditions = prepare_conditions(bright, ["bright"], steps=2)
    assert conditions.prompts == ("bright",)
    x, region = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    sampling = Sampling(steps=2).resolved(bright.config, masked=False)
    first = [
        next(
            inpaint(bright, x, region, dataclasses.replace(conditions, prompts=(prompt,)), generators_of([3]), sampling)
        )
        for prompt in ("bright", "dark")
    ]
    assert not torch.equal(first[0].z, first[1].z)


def test_a_file_keeps_the_priors_of_prompts_and_their_names(bright, tmp_path):
    save_model(bright, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.config.schedule.prior_prompts == again.prior.prompts == ("bright",)
    assert torch.equal(again.prior.of("bright").mean, bright.prior.of("bright").mean)
    again.set_prior(None)
    assert again.config.schedule == dataclasses.replace(bright.config.schedule, start_prior=0, prior_prompts=())


def test_the_prior_of_one_size_starts_images_of_another(model):
    sampling = Sampling(steps=2, size=32).resolved(model.config, masked=False)
    assert draw_start(model, sampling, generators_of([0]), ["a"]).shape == (1, 4, 8, 8)


def test_a_file_keeps_the_prior_bit_for_bit_and_parts_that_are_not_asked_for_leave_it_there(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    for parts in (("vae",), ("unet", "text")):
        again = load_model(tmp_path / "model.safetensors", parts=parts)
        assert again.config == model.config
        assert torch.equal(again.prior.mean, model.prior.mean)
        assert torch.equal(again.prior.factor, model.prior.factor)
    assert again.prior.mean.shape == (4, POOLED, POOLED)


def test_fewer_images_than_components_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="rank 20 needs more than 20 images, and there are 20"):
        estimate_prior(latents_like_images(20), rank=20)
    for rank in (0, -1, 257):
        with pytest.raises(ValueError, match=f"rank {rank}: use 1 to 256"):
            estimate_prior(latents_like_images(300), rank=rank)
