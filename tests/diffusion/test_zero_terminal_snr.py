"""A schedule that ends in pure noise, sampled from its end: arXiv 2305.08891, and every place where 0 would divide."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from ldm_us.config import SD15, US128_V, ScheduleConfig, config_from_dict
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import ddpm_step, eps_of, make_schedule, predict_z_0, q_sample, velocity
from ldm_us.diffusion.guidance import Conditions, Guidance, guides_at, noise_level
from ldm_us.diffusion.inversion import invert, invert_step
from ldm_us.diffusion.sampling import Sampling, denoise
from ldm_us.training.losses import min_snr_weight

PLAIN = make_schedule(ScheduleConfig())
ZERO = make_schedule(US128_V.schedule)
TO_CLEAN = make_schedule(dataclasses.replace(US128_V.schedule, final_alpha_bar_one=True))
CONTEXT = torch.zeros(2, 1, 1, dtype=torch.float64)


def normal(seed):
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(t):
    return torch.tensor([t, t])


def model_of(schedule, unet):
    return SimpleNamespace(schedule=schedule, unet=unet, device=torch.device("cpu"), controlnet=None, config=SD15)


def test_the_rescaled_schedule_is_the_papers_algorithm_and_ends_in_exactly_0():
    """Rescale algorithm 1, in Python's doubles from betas alone."""
    roots, product = [], 1.0
    for beta in PLAIN.beta.tolist():
        product *= 1 - beta
        roots.append(math.sqrt(product))
    shifted = [(root - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for root in roots]
    assert float(ZERO.alpha_bar[-1]) == 0.0
    assert ZERO.ends_in_noise
    assert not PLAIN.ends_in_noise
    assert ZERO.alpha_bar.tolist() == pytest.approx([root**2 for root in shifted], rel=1e-9, abs=1e-15)
    assert float(ZERO.alpha_bar[0]) == pytest.approx(float(PLAIN.alpha_bar[0]), rel=1e-12)
    torch.testing.assert_close(torch.cumprod(ZERO.alpha, 0), ZERO.alpha_bar, rtol=1e-9, atol=1e-15)
    assert float(ZERO.beta[-1]) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 999, 1000])
def test_a_trailing_grid_starts_at_the_last_timestep_and_is_the_papers(steps):
    """Rescale section 3.3: round(T - i T / S) - 1."""
    pairs = ddim_timesteps(ZERO, steps)
    grid = [t for t, _ in pairs]
    assert len(grid) == steps
    assert grid[0] == 999
    assert grid == sorted(set(grid), reverse=True)
    assert all(abs(t + 1 - (1000 - i * 1000 / steps)) <= 0.5 for i, t in enumerate(grid))
    assert [t_prev for _, t_prev in pairs] == [*grid[1:], -1]
    if steps == 50:
        assert (grid[1], grid[-1]) == (979, 19)


def test_pure_noise_holds_nothing_of_the_image_and_v_there_is_the_image_turned_over():
    """DDPM Eq. 4, Progressive Distillation section 4 and Progressive Distillation appendix D, at alpha_bar = 0."""
    z_0, eps = normal(0), normal(1)
    z_T = q_sample(ZERO, z_0, at(999), eps)
    assert torch.equal(z_T, eps)
    v = velocity(ZERO, z_0, at(999), eps)
    assert torch.equal(v, -z_0)
    assert torch.equal(predict_z_0(ZERO, z_T, at(999), v), z_0)
    assert torch.equal(eps_of(ZERO, z_T, at(999), v), eps)


@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_a_perfect_network_leads_from_pure_noise_to_its_image_in_any_number_of_steps(sampler, eta, steps):
    """DDIM Eq. 12, DDPM Eq. 6 and 7, from alpha_bar = 0 on; guided, rescaled and limited to an interval as well."""
    z_0 = normal(2).float()

    def true_v(z_t, t, context, control):
        a = TO_CLEAN.alpha_bar[t].float().view(-1, 1, 1, 1)
        of_image = z_0.repeat(len(z_t) // 2, 1, 1, 1)
        return velocity(TO_CLEAN, of_image, t, (z_t - a.sqrt() * of_image) / (1 - a).sqrt())

    for guidance in (Guidance(1.0), Guidance(3.0, rescale=0.7, interval=(0.3, math.inf))):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        conditions = Conditions(CONTEXT.float(), CONTEXT.float(), guidance)
        sampling = Sampling(sampler, steps, eta)
        *_, last = denoise(model_of(TO_CLEAN, true_v), normal(3).float(), conditions, generators, sampling)
        torch.testing.assert_close(last.z, z_0, rtol=0, atol=1e-3)


def test_one_step_from_pure_noise_is_finite_and_has_the_noise_level_of_its_timestep():
    """DDIM Eq. 12 with eta 1 and DDPM Eq. 6 agree there too (DDIM section 4.1)."""
    z_T, v, noise = normal(4), normal(5), normal(6)
    stepped = ddim_step(ZERO, z_T, at(999), at(959), v, 1.0, noise)
    torch.testing.assert_close(ddpm_step(ZERO, z_T, at(999), at(959), v, noise), stepped, rtol=0, atol=1e-12)
    a = ZERO.alpha_bar[959]
    torch.testing.assert_close(stepped, a.sqrt() * -v + (1 - a).sqrt() * noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_inversion_to_pure_noise_is_the_exact_inverse_of_the_steps(steps):
    """Progressive Distillation appendix D, turned back: the fixed point of each step, the last included."""
    curved = lambda z, t, *_: 0.3 * torch.tanh(z + t.view(-1, 1, 1, 1) / 1000)  # noqa: E731
    z, conditions = normal(7), Conditions(CONTEXT, CONTEXT, Guidance(1.0))
    model = model_of(ZERO, curved)
    for t, t_prev in reversed(ddim_timesteps(ZERO, steps)):
        z_t = invert_step(model, z, t_prev, t, conditions, iterations=100)
        back = ddim_step(ZERO, z_t, at(t), at(t_prev), curved(z_t, at(t)))
        torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
        z = z_t
    assert bool(z.isfinite().all())


def test_inversion_in_one_step_to_pure_noise_is_refused_and_to_less_of_it_is_not():
    conditions = Conditions(CONTEXT.float(), CONTEXT.float(), Guidance(1.0))
    model = model_of(ZERO, lambda z, *_: z)
    with pytest.raises(ValueError, match=r"holds nothing of an image: use 2 steps or more"):
        invert(model, normal(8), conditions, steps=1)
    assert bool(invert(model, normal(8), conditions, steps=2, start=1).isfinite().all())


def test_the_noise_level_of_pure_noise_is_infinite_and_guidance_without_an_upper_end_acts_there():
    assert noise_level(ZERO, 999) == math.inf
    assert guides_at(Guidance(3.0, interval=(1.0, math.inf)), ZERO, at(999))
    assert not guides_at(Guidance(3.0, interval=(1.0, 1e9)), ZERO, at(999))


def test_pure_noise_counts_in_a_weighted_loss_for_sampling_starts_there():
    """MinSNR section 3.4: min(SNR, gamma) / (SNR + 1) would be 0, and v_theta(z_T, T) never learned."""
    weights = min_snr_weight(ZERO, torch.tensor([999, 998, 0]), 5.0)
    assert float(weights[0]) == 1.0
    snr = [float(a / (1 - a)) for a in ZERO.alpha_bar[[998, 0]]]
    assert weights[1:].tolist() == pytest.approx([min(each, 5.0) / (each + 1) for each in snr], rel=1e-5)


def test_noise_cannot_be_predicted_from_pure_noise_and_another_spacing_is_unknown():
    with pytest.raises(ValueError, match=r"prediction eps with zero_terminal_snr: .* Use v\."):
        ScheduleConfig(zero_terminal_snr=True)
    with pytest.raises(ValueError, match=r"spacing 'linspace' of timesteps: use one of leading, trailing\."):
        config_from_dict({"schedule": {"spacing": "linspace"}})


def test_a_schedule_of_one_timestep_cannot_end_in_noise_and_grain_has_a_band():
    with pytest.raises(ValueError, match="zero_terminal_snr needs 2 timesteps or more"):
        config_from_dict({"schedule": {"prediction": "v", "zero_terminal_snr": True, "timesteps": 1}})
    with pytest.raises(ValueError, match="grain_bands 0: grain is measured in 1 band of depth or more"):
        config_from_dict({"vae": {"grain": True, "grain_bands": 0}})
