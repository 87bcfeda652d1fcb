"""DPM-Solver++(2M): DDIM without its memory, the paper's algorithm with it, second order, and right at both ends."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from ldm_us.config import SD15, US128_V, ScheduleConfig
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule, predict_z_0, q_sample, target_of
from ldm_us.diffusion.dpm_solver import dpm_step
from ldm_us.diffusion.guidance import Conditions, Guidance
from ldm_us.diffusion.sampling import Sampling, denoise

SCHEDULES = {
    "sd15": ScheduleConfig(),
    "sd15 to 1": ScheduleConfig(final_alpha_bar_one=True),
    "v": ScheduleConfig(prediction="v"),
    "v from 0": US128_V.schedule,
    "v from 0 to 1": dataclasses.replace(US128_V.schedule, final_alpha_bar_one=True),
}
MEAN, STD = 0.3, 0.2  # of a Gaussian, whose best prediction and exact way to z_0 are known


def normal(seed):
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(t):
    return torch.tensor([t, t])


def gaussian_answer(schedule, z, t):
    """What the best network of this schedule answers, for data N(MEAN, STD^2)."""
    ab = float(schedule.alpha_bar[t])
    z_0 = MEAN + ab**0.5 * STD**2 / (ab * STD**2 + 1 - ab) * (z - ab**0.5 * MEAN)
    eps = (z - ab**0.5 * z_0) / (1 - ab) ** 0.5
    return target_of(schedule, z_0, at(t), eps)


def walk(schedule, pairs, answer, z, memory=True):
    before = None
    for t, t_prev in pairs:
        prediction = answer(schedule, z, t)
        z_0_hat = predict_z_0(schedule, z, at(t), prediction)
        z = dpm_step(schedule, z, at(t), at(t_prev), prediction, before)
        before = (at(t), z_0_hat) if memory else None
    return z


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_a_memory_every_step_is_ddim_at_eta_0(name):
    """DPM-Solver++ of order 1 is DDIM (section 4 of the paper), from and to every noise level."""
    schedule = make_schedule(SCHEDULES[name])
    for t, t_prev in ddim_timesteps(schedule, 7):
        z, prediction = normal(t), normal(t + 1)
        expected = ddim_step(schedule, z, at(t), at(t_prev), prediction)
        torch.testing.assert_close(dpm_step(schedule, z, at(t), at(t_prev), prediction), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 9])
def test_a_walk_is_the_papers_algorithm_2_in_plain_floats(name, steps):
    """DPMSolver algorithm 2, number by number with Python's doubles, from alpha and sigma alone."""
    schedule = make_schedule(SCHEDULES[name])
    pairs, z_T = ddim_timesteps(schedule, steps), normal(3)

    def answer(schedule, z, t):
        return torch.tanh(z * (0.5 + t / 1000))

    walked = walk(schedule, pairs, answer, z_T)
    for place in [(0, 0, 0, 0), (1, 3, 2, 1)]:
        z, last = float(z_T[place]), None
        for t, t_prev in pairs:
            ab = float(schedule.alpha_bar[t])
            ab_prev = schedule.final_alpha_bar if t_prev < 0 else float(schedule.alpha_bar[t_prev])
            alpha, sigma, alpha_prev, sigma_prev = (math.sqrt(x) for x in (ab, 1 - ab, ab_prev, 1 - ab_prev))
            answered = math.tanh(z * (0.5 + t / 1000))
            z_0 = alpha * z - sigma * answered if schedule.config.prediction == "v" else (z - sigma * answered) / alpha
            lam = math.log(alpha / sigma) if alpha else -math.inf
            lam_prev = math.log(alpha_prev / sigma_prev) if sigma_prev else math.inf
            h, d = lam_prev - lam, z_0
            if last is not None and h < math.inf:
                r = (lam - last[0]) / h
                d = (1 + 1 / (2 * r)) * z_0 - 1 / (2 * r) * last[1]
            z = sigma_prev / sigma * z - alpha_prev * (math.exp(-h) - 1) * d
            last = (lam, z_0)
        assert float(walked[place]) == pytest.approx(z, rel=1e-9, abs=1e-12)


def test_on_gaussian_data_the_error_falls_with_the_square_of_the_step_and_ddims_with_the_step():
    """The exact way keeps (z_t - alpha mean) / std(z_t). Steps have one length in lambda; each grid halves it."""
    schedule = make_schedule(ScheduleConfig(timesteps=200_000, beta_start=0.00085 / 200, beta_end=0.012 / 200))
    alpha_bar = schedule.alpha_bar
    lam = (alpha_bar / (1 - alpha_bar)).log()

    def exact(z, t, t_prev):
        spread = [(alpha_bar[i] * STD**2 + 1 - alpha_bar[i]).sqrt() for i in (t, t_prev)]
        return alpha_bar[t_prev].sqrt() * MEAN + (z - alpha_bar[t].sqrt() * MEAN) / spread[0] * spread[1]

    def errors(memory):
        found = []
        for steps in (16, 32, 64):
            marks = torch.linspace(float(lam[-1]), float(lam[100]), steps + 1, dtype=torch.float64)
            grid = [int((lam - mark).abs().argmin()) for mark in marks]
            pairs = list(itertools.pairwise(grid))
            walked = walk(schedule, pairs, gaussian_answer, normal(1), memory)
            found.append(float((walked - exact(normal(1), grid[0], grid[-1])).abs().max()))
        return found

    second, first = errors(memory=True), errors(memory=False)
    assert [a / b for a, b in itertools.pairwise(second)] == pytest.approx([4, 4], abs=1.0)
    assert [a / b for a, b in itertools.pairwise(first)] == pytest.approx([2, 2], abs=0.5)
    assert second[-1] < first[-1] / 10


def test_the_sampler_dpm_hands_each_step_the_one_before_and_draws_no_noise():
    """`denoise` with sampler dpm is the walk above, and asks no generator."""
    schedule = make_schedule(US128_V.schedule)

    def unet(z, t, context, control=None):
        return torch.tanh(z * (0.5 + t.view(-1, 1, 1, 1) / 1000))

    model = SimpleNamespace(schedule=schedule, unet=unet, device=torch.device("cpu"), controlnet=None, config=SD15)
    conditions = Conditions(torch.zeros(2, 1, 1, dtype=torch.float64), None, Guidance(1.0))
    sampling = Sampling("dpm", steps=5, guidance=1.0, control_scale=1.0)
    *_, last = denoise(model, normal(3), conditions, [], sampling)
    expected = walk(schedule, ddim_timesteps(schedule, 5), lambda _, z, t: unet(z, at(t), None), normal(3))
    torch.testing.assert_close(last.z, expected, rtol=0, atol=0)


def test_true_noise_walked_back_returns_z_0():
    """DDPM Eq. 4 undone by any number of steps: z_0_hat is z_0 at each, so the line through two of them is flat."""
    schedule = make_schedule(SCHEDULES["sd15 to 1"])
    z_0, eps = normal(1), normal(2)
    pairs = ddim_timesteps(schedule, 6)
    z_T = q_sample(schedule, z_0, at(pairs[0][0]), eps)
    torch.testing.assert_close(walk(schedule, pairs, lambda *_: eps, z_T), z_0, rtol=1e-9, atol=1e-9)
