"""DDIM: golden numbers of the original scheduler, what each wrong convention would do to them, and its limits."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_us.config import TINY, ScheduleConfig
from ldm_us.diffusion.ddim import ddim_invert_step, ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule, posterior, predict_z_0, q_sample
from ldm_us.diffusion.guidance import Conditions, Guidance
from ldm_us.diffusion.sampling import Sampling, denoise
from tests.golden.fill import uniform

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "schedulers.npz")
SCHEDULE = make_schedule(ScheduleConfig())
TO_ONE = make_schedule(ScheduleConfig(final_alpha_bar_one=True))
SHAPE = (1, 4, 8, 8)


def tensor(name, shape=SHAPE):
    return torch.from_numpy(uniform(name, shape)).double()


def error_of_20_steps(schedule, eta, eta_of=lambda t, t_prev, eta: eta):
    """Relative error of 20 steps with the fake network of the golden numbers; eta_of may change eta in each step."""
    z = tensor("x_T")
    for i, (t, t_prev) in enumerate(ddim_timesteps(schedule, 20)):
        eps_hat = torch.tanh(z * (0.5 + t / 1000))
        eta_i = eta_of(t, t_prev, eta)
        z = ddim_step(schedule, z, torch.tensor([t]), torch.tensor([t_prev]), eps_hat, eta_i, tensor(f"noise_{i:02d}"))
    golden = GOLDEN[f"ddim.x0_eta{eta:.0f}_20"]
    return float(np.linalg.norm(z.numpy() - golden) / np.linalg.norm(golden))


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_timesteps_equal_the_original_scheduler(steps):
    pairs = ddim_timesteps(SCHEDULE, steps)
    assert [t for t, _ in pairs] == GOLDEN[f"ddim.timesteps_{steps}"].tolist()
    assert [t_prev for _, t_prev in pairs] == [*[t for t, _ in pairs[1:]], -1]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_20_steps_equal_the_original_scheduler(eta):
    """DDIM Eq. 9, Eq. 12 and Eq. 16, with the golden numbers."""
    assert error_of_20_steps(SCHEDULE, eta) < 1e-9


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_golden_steps_notice_a_last_alpha_bar_of_1(eta):
    assert error_of_20_steps(TO_ONE, eta) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_golden_steps_notice_linear_betas(eta):
    beta = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    linear = dataclasses.replace(SCHEDULE, beta=beta, alpha=1 - beta, alpha_bar=torch.cumprod(1 - beta, dim=0))
    assert error_of_20_steps(linear, eta) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_golden_steps_notice_a_grid_that_starts_at_0(eta):
    assert error_of_20_steps(make_schedule(ScheduleConfig(first_timestep=0)), eta) > 1e-3


def test_the_golden_steps_notice_a_sigma_without_the_ratio_of_noise_levels():
    """DDIM Eq. 16: without its first factor it is DDPM's "fixed large" sigma."""

    def eta_without_ratio(t, t_prev, eta):
        prev = SCHEDULE.alpha_bar[max(t_prev, 0)]
        return eta / float(((1 - prev) / (1 - SCHEDULE.alpha_bar[t])).sqrt())

    assert error_of_20_steps(SCHEDULE, 1.0, eta_without_ratio) > 1e-3


def test_sigma_is_the_formula_of_the_paper():
    """DDIM Eq. 16, in plain floats: what unit noise adds to a step."""
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for t, t_prev in ddim_timesteps(SCHEDULE, 7)[:-1]:
        a, prev = float(SCHEDULE.alpha_bar[t]), float(SCHEDULE.alpha_bar[t_prev])
        sigma = 0.3 * ((1 - prev) / (1 - a)) ** 0.5 * (1 - a / prev) ** 0.5
        stepped = ddim_step(SCHEDULE, zero, torch.tensor([t]), torch.tensor([t_prev]), zero, eta=0.3, noise=one)
        assert float(stepped) == pytest.approx(sigma, rel=1e-12)


@pytest.mark.parametrize("jump", [1, 20, 100])
def test_eta_1_has_the_mean_and_variance_of_the_ddpm_posterior(jump):
    """DDIM Eq. 12 with the sigma of DDIM Eq. 16 is DDPM Eq. 7, for every t and jump."""
    t = torch.arange(jump, 1000)
    for name in ("a", "b", "c"):
        z_0, z_t = tensor(f"z_0 {name}", (len(t), 1, 2, 2)), tensor(f"z_t {name}", (len(t), 1, 2, 2))
        a = SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1)
        eps = (z_t - a.sqrt() * z_0) / (1 - a).sqrt()
        mean, variance = posterior(SCHEDULE, z_0, z_t, t, t - jump)
        without = ddim_step(SCHEDULE, z_t, t, t - jump, eps, eta=1.0, noise=torch.zeros_like(z_t))
        with_one = ddim_step(SCHEDULE, z_t, t, t - jump, eps, eta=1.0, noise=torch.ones_like(z_t))
        torch.testing.assert_close(without, mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close((with_one - without) ** 2, variance.expand_as(mean), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_keeps_the_noise_level_of_the_grid(eta):
    """DDIM Eq. 12: with true noise, z_prev has mean sqrt(abp) z_0 and noise variance 1 - abp, whatever eta is."""
    t, t_prev = torch.tensor([501]), torch.tensor([301])
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    prev = float(SCHEDULE.alpha_bar[301])

    def step(z_0, eps, noise):
        return float(ddim_step(SCHEDULE, q_sample(SCHEDULE, z_0, t, eps), t, t_prev, eps, eta, noise))

    assert step(one, zero, zero) == pytest.approx(prev**0.5, rel=1e-12)
    assert step(zero, one, zero) ** 2 + step(zero, zero, one) ** 2 == pytest.approx(1 - prev, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_true_noise_walked_back_returns_z_0_where_the_final_alpha_bar_is_1_else_stops_at_alpha_bar_0(steps):
    """DDIM Eq. 9 and DDIM Eq. 12."""
    z_0, eps = tensor("z_0"), tensor("eps")
    for schedule in (TO_ONE, SCHEDULE):
        first = ddim_timesteps(schedule, steps)[0][0]
        z = q_sample(schedule, z_0, torch.tensor([first]), eps)
        for t, t_prev in ddim_timesteps(schedule, steps):
            z = ddim_step(schedule, z, torch.tensor([t]), torch.tensor([t_prev]), eps)
        expected = z_0 if schedule is TO_ONE else q_sample(schedule, z_0, torch.tensor([0]), eps)
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-10)
    assert float((z - z_0).abs().max()) > 1e-2


def test_inversion_undoes_a_step_for_a_constant_eps():
    """DDIM Eq. 14 is followed both ways; from beyond the first step too."""
    for t, t_prev in ddim_timesteps(SCHEDULE, 10):
        pair = torch.tensor([t]), torch.tensor([t_prev])
        z_prev = ddim_step(SCHEDULE, tensor("z_t"), *pair, tensor("eps"))
        z_t = ddim_invert_step(SCHEDULE, z_prev, pair[1], pair[0], tensor("eps"))
        torch.testing.assert_close(z_t, tensor("z_t"), rtol=0, atol=1e-11)


def test_eta_0_ignores_the_noise_and_eta_above_0_needs_it():
    z_t, eps, t, t_prev = tensor("z_t"), tensor("eps"), torch.tensor([501]), torch.tensor([401])
    without = ddim_step(SCHEDULE, z_t, t, t_prev, eps)
    assert torch.equal(without, ddim_step(SCHEDULE, z_t, t, t_prev, eps, noise=tensor("noise")))
    with pytest.raises(AssertionError, match="needs noise"):
        ddim_step(SCHEDULE, z_t, t, t_prev, eps, eta=0.5)


def test_each_sample_of_a_batch_may_be_at_its_own_t():
    """DDIM Eq. 9 for a batch equals its samples one by one."""
    z_t, eps = tensor("z_t", (3, 4, 2, 2)), tensor("eps", (3, 4, 2, 2))
    t, t_prev = torch.tensor([1, 501, 981]), torch.tensor([-1, 481, 0])
    alone = [ddim_step(SCHEDULE, z_t[i, None], t[i, None], t_prev[i, None], eps[i, None]) for i in range(3)]
    torch.testing.assert_close(ddim_step(SCHEDULE, z_t, t, t_prev, eps), torch.cat(alone), rtol=0, atol=1e-14)
    assert predict_z_0(SCHEDULE, z_t, t, eps).shape == z_t.shape


def test_every_number_of_steps_has_a_strictly_descending_grid_of_its_length_that_starts_near_the_noisiest_timestep():
    for steps in range(1, 1001):
        grid = np.array([t for t, _ in ddim_timesteps(SCHEDULE, steps)])
        assert len(grid) == steps
        assert 1000 - 1000 / steps - 50 <= grid[0] <= 999
        assert grid[-1] == (0 if steps == 1000 else 1)
        assert set(-np.diff(grid)) <= {1000 // steps, 1000 // steps + 1}


def test_numbers_of_steps_that_floor_spacing_serves_well_keep_it_and_all_have_it_in_an_older_schedule():
    """SD 1.5's own code spaces by floor(T / S) for any S: with 30 steps it starts at 958, with 600 at 600."""
    older = dataclasses.replace(SCHEDULE, whole_spacing=True)
    kept = [*range(1, 51), 60, 75, 80, 100, 120, 200, 250, 333, 500, 999, 1000]
    for steps in [*kept, 59, 150, 300, 334, 600]:
        floor = np.arange(steps)[::-1] * (1000 // steps) + (steps < 1000)
        assert [t for t, _ in ddim_timesteps(older, steps)] == floor.tolist()
        assert ([t for t, _ in ddim_timesteps(SCHEDULE, steps)] == floor.tolist()) == (steps in kept)
    assert [ddim_timesteps(SCHEDULE, steps)[0][0] for steps in (59, 334, 600)] == [984, 998, 999]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 1000))
def test_every_number_of_steps_makes_exactly_as_many_model_calls(steps):
    seen = []

    def unet(z, t, context, control):
        seen.append(int(t))
        return torch.zeros_like(z)

    model = SimpleNamespace(config=TINY, schedule=SCHEDULE, unet=unet)
    context = torch.zeros(1, 1, 1)
    conditions = Conditions(context, context, Guidance(1.0))
    walked = [step.t for step in denoise(model, torch.ones(1, 1, 8, 8), conditions, [], Sampling(steps=steps))]
    assert walked == seen == [t for t, _ in ddim_timesteps(SCHEDULE, steps)]


@pytest.mark.parametrize("steps", [s for s in range(1, 1000) if 1000 % s == 0])
def test_steps_that_divide_1000_sample_at_1_and_every_1000_over_s_after_it(steps):
    assert [t for t, _ in ddim_timesteps(SCHEDULE, steps)][::-1] == list(range(1, 1001, 1000 // steps))


@pytest.mark.parametrize("steps", [0, 1001, -3])
def test_steps_outside_1_to_1000_are_refused_with_the_range(steps):
    with pytest.raises(ValueError, match=rf"^{steps} sampling steps: .*1\.\.1000"):
        ddim_timesteps(SCHEDULE, steps)
