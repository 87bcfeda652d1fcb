"""docs/changing.md, change 4: PLMS of order 2, whose steps remember the one before."""

from functools import partial

import pytest
import torch

import sample
from ldm_us.config import ScheduleConfig
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.guidance import prepare_conditions
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.plms import plms_step
from ldm_us.diffusion.sampling import Sampling, denoise
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command
from tests.conftest import MICRO

SCHEDULE = make_schedule(ScheduleConfig())
S = 0.3  # standard deviation of z_0, of which all that a perfect denoiser says is known in closed form


def spread(t):
    """Of z_t: the exact path of a sample is proportional to it."""
    alpha_bar = SCHEDULE.final_alpha_bar if t < 0 else float(SCHEDULE.alpha_bar[t])
    return (alpha_bar * S**2 + 1 - alpha_bar) ** 0.5


def error(step, steps, last=-1):
    """How far a walk from 1 at z_T to `last` ends from the exact one, by ratio; step takes z_t, t, t_prev, eps_hat."""
    grid = [(t, t_prev) for t, t_prev in ddim_timesteps(SCHEDULE, steps) if t_prev >= last]
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for t, t_prev in grid:
        eps_hat = (1 - float(SCHEDULE.alpha_bar[t])) ** 0.5 / spread(t) ** 2 * z
        z = step(z, torch.tensor([t]), torch.tensor([t_prev]), eps_hat)
    return abs(float(z) * spread(grid[0][0]) / spread(grid[-1][1]) - 1)


def remembering():
    """plms_step as a walk calls it."""
    before = None

    def step(z, t, t_prev, eps_hat):
        nonlocal before
        z_prev, before = plms_step(SCHEDULE, z, t, t_prev, eps_hat, before), eps_hat
        return z_prev

    return step


def test_a_first_step_is_that_of_ddim():
    """DDIM Eq. 12."""
    z, eps_hat = torch.randn(2, 2, 4, 4, 4, dtype=torch.float64).unbind()
    for t, t_prev in ((981, 961), (1, -1)):
        times = torch.tensor([t, t]), torch.tensor([t_prev, t_prev])
        expected = ddim_step(SCHEDULE, z, *times, eps_hat)
        torch.testing.assert_close(plms_step(SCHEDULE, z, *times, eps_hat, None), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_with_a_perfect_denoiser_it_comes_nearer_to_the_exact_end_than_ddim(steps):
    assert error(remembering(), steps) < error(partial(ddim_step, SCHEDULE), steps)


def test_twice_the_steps_leave_a_quarter_of_the_error_and_half_of_that_of_ddim():
    """Second order, and first; above t = 300, where steps of t are small steps of lambda."""
    ratios = [
        error(step(), 200, last=300) / error(step(), 100, last=300)
        for step in (remembering, lambda: partial(ddim_step, SCHEDULE))
    ]
    assert ratios == pytest.approx([0.25, 0.5], rel=0.1)


def test_the_walk_hands_each_step_what_the_one_before_it_predicted():
    torch.manual_seed(0)
    model = LatentDiffusion(MICRO).eval().requires_grad_(False)
    conditions, z_T = prepare_conditions(model, ["a"]), torch.randn(1, 4, 4, 4)
    _, one, two, _ = denoise(model, z_T, conditions, [], Sampling(sampler="plms", steps=4))
    t, t_prev = (torch.tensor([value]) for value in ddim_timesteps(model.schedule, 4)[2])
    expected = plms_step(model.schedule, one.z, t, t_prev, two.eps_hat, one.eps_hat)
    torch.testing.assert_close(two.z, expected)


def test_its_pictures_verify_and_eta_is_refused(tmp_path, capsys):
    save_model(LatentDiffusion(MICRO), tmp_path / "model.safetensors")
    weights = ["--weights", str(tmp_path / "model.safetensors")]
    words = [*weights, "--sampler", "plms", "--steps", "3", "--n", "1", "--class", "benign"]
    assert sample.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert sample.main([*weights, "--verify", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert run_command(partial(sample.main, [*words, "--eta", "1"])) == 2
    assert "--eta is of ddim and does nothing with --sampler plms" in capsys.readouterr().err
