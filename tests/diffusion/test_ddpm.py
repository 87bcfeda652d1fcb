"""DDPM: golden numbers of the original scheduler, and each equation against Gaussians worked out another way."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_us.config import PREDICTIONS, ScheduleConfig
from ldm_us.diffusion.ddpm import (
    ddpm_step,
    eps_of,
    make_schedule,
    posterior,
    predict_eps_from_v,
    predict_z_0,
    q_sample,
    target_of,
    velocity,
)
from tests.golden.fill import uniform

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "schedulers.npz")
SCHEDULE = make_schedule(ScheduleConfig())
BETA = SCHEDULE.beta.tolist()


def tensor(name, shape):
    return torch.from_numpy(uniform(name, shape)).double()


def relative_error(values, golden):
    return float(np.linalg.norm(values.numpy() - GOLDEN[golden]) / np.linalg.norm(GOLDEN[golden]))


def walk_last_50(variance_scale=1.0):
    """50 ancestral steps with the fake network of the golden numbers, their variance scaled."""
    z = tensor("x_T", (1, 4, 8, 8))
    for step in reversed(range(50)):
        t, t_prev = torch.tensor([step]), torch.tensor([step - 1])
        noise = tensor(f"noise_{step:03d}", (1, 4, 8, 8)) * variance_scale**0.5 if step > 0 else None
        z = ddpm_step(SCHEDULE, z, t, t_prev, torch.tanh(z * (0.5 + step / 1000)), noise)
    return z


def noised_inputs():
    return tensor("x0", (3, 4, 8, 8)), torch.tensor([0, 499, 999]), tensor("eps", (3, 4, 8, 8))


def test_the_last_50_ancestral_steps_equal_the_original_scheduler():
    """DDPM Eq. 6 and Eq. 7, with the golden numbers."""
    assert relative_error(walk_last_50(), "ddpm.x0_last50") < 1e-9


def test_the_golden_steps_notice_another_variance():
    assert relative_error(walk_last_50(variance_scale=1.01), "ddpm.x0_last50") > 1e-4


def test_noising_and_velocity_equal_the_original_scheduler():
    """DDPM Eq. 4 and Progressive Distillation section 4, with the golden numbers."""
    z_0, t, eps = noised_inputs()
    assert relative_error(q_sample(SCHEDULE, z_0, t, eps), "add_noise") < 1e-9
    assert relative_error(velocity(SCHEDULE, z_0, t, eps), "velocity") < 1e-9


def test_the_golden_numbers_notice_a_timestep_that_is_off_by_one():
    z_0, t, eps = noised_inputs()
    off = (t - 1).clamp(min=0)
    assert relative_error(q_sample(SCHEDULE, z_0, off, eps), "add_noise") > 1e-4
    assert relative_error(velocity(SCHEDULE, z_0, off, eps), "velocity") > 1e-4


def test_one_jump_equals_the_composition_of_single_noising_steps():
    """DDPM Eq. 4 from Eq. 2: z_t = sqrt(1 - beta) z_{t-1} + sqrt(beta) n, mean and variance carried along."""
    t = torch.arange(1000)
    one, zero = torch.ones(1000, 1, 1, 1, dtype=torch.float64), torch.zeros(1000, 1, 1, 1, dtype=torch.float64)
    mean = q_sample(SCHEDULE, one, t, zero).flatten().tolist()
    variance = q_sample(SCHEDULE, zero, t, one).square().flatten().tolist()
    m, v = 1.0, 0.0
    for step in range(1000):
        m, v = (1 - BETA[step]) ** 0.5 * m, (1 - BETA[step]) * v + BETA[step]
        assert mean[step] == pytest.approx(m, rel=1e-11)
        assert variance[step] == pytest.approx(v, rel=1e-11)


@pytest.mark.parametrize("jump", [1, 20, 333])
def test_the_posterior_is_bayes_rule_for_the_two_gaussians(jump):
    """DDPM Eq. 7: prior N(sqrt(abp) z_0, 1 - abp) times likelihood N(sqrt(a) z_prev, 1 - a), by adding precisions."""
    alpha_bar = np.cumprod(1 - np.array(BETA))
    for step in [*range(jump, 1000, 37), 999]:
        z_0, z_t = tensor(f"z_0 {step}", (1, 4, 2, 2)), tensor(f"z_t {step}", (1, 4, 2, 2))
        prev, a = alpha_bar[step - jump], np.prod(1 - np.array(BETA[step - jump + 1 : step + 1]))
        expected_variance = 1 / (1 / (1 - prev) + a / (1 - a))
        expected_mean = expected_variance * (prev**0.5 * z_0 / (1 - prev) + a**0.5 * z_t / (1 - a))
        mean, variance = posterior(SCHEDULE, z_0, z_t, torch.tensor([step]), torch.tensor([step - jump]))
        assert variance.shape == (1, 1, 1, 1)
        assert float(variance) == pytest.approx(expected_variance, rel=1e-9)
        torch.testing.assert_close(mean, expected_mean, rtol=1e-9, atol=1e-12)


def test_the_posterior_before_the_first_step_is_z_0_without_variance():
    """DDPM Eq. 7 where alpha_bar_prev is 1."""
    z_0, z_t = tensor("z_0", (2, 4, 2, 2)), tensor("z_t", (2, 4, 2, 2))
    mean, variance = posterior(SCHEDULE, z_0, z_t, torch.tensor([0, 40]), torch.tensor([-1, -1]))
    torch.testing.assert_close(mean, z_0, rtol=1e-12, atol=1e-12)
    assert variance.flatten().tolist() == [0.0, 0.0]


def test_true_noise_gives_back_z_0():
    """DDPM Eq. 15 undoes DDPM Eq. 4."""
    z_0, t, eps = noised_inputs()
    torch.testing.assert_close(predict_z_0(SCHEDULE, q_sample(SCHEDULE, z_0, t, eps), t, eps), z_0, rtol=0, atol=1e-12)


def test_z_0_is_not_clipped():
    z_0, t, eps = 50 * tensor("x0", (3, 4, 8, 8)), torch.tensor([0, 499, 999]), tensor("eps", (3, 4, 8, 8))
    assert float(predict_z_0(SCHEDULE, q_sample(SCHEDULE, z_0, t, eps), t, eps).abs().max()) > 50


def test_velocity_and_z_t_give_back_z_0_and_eps():
    """Progressive Distillation section 4 and, back, Progressive Distillation appendix D.

    z_0 = sqrt(ab) z_t - sqrt(1 - ab) v; eps = sqrt(1 - ab) z_t + sqrt(ab) v.
    """
    z_0, t, eps = noised_inputs()
    z_t, v = q_sample(SCHEDULE, z_0, t, eps), velocity(SCHEDULE, z_0, t, eps)
    ab = torch.tensor([float(np.prod(1 - np.array(BETA[: i + 1]))) for i in t.tolist()], dtype=torch.float64)
    ab = ab.view(-1, 1, 1, 1)
    torch.testing.assert_close(ab.sqrt() * z_t - (1 - ab).sqrt() * v, z_0, rtol=0, atol=1e-12)
    torch.testing.assert_close((1 - ab).sqrt() * z_t + ab.sqrt() * v, eps, rtol=0, atol=1e-12)


def test_v_and_z_t_give_back_the_noise_and_through_it_z_0():
    """Progressive Distillation appendix D: z_t turned by the angle of its noise level, in Python's doubles."""
    z_0, t, eps = noised_inputs()
    z_t, v = q_sample(SCHEDULE, z_0, t, eps), velocity(SCHEDULE, z_0, t, eps)
    eps_hat = predict_eps_from_v(SCHEDULE, z_t, t, v)
    for i, step in enumerate(t.tolist()):
        angle = math.acos(math.sqrt(math.prod(1 - beta for beta in BETA[: step + 1])))
        for place in ((0, 0, 0), (3, 7, 1)):
            expected = math.sin(angle) * float(z_t[i][place]) + math.cos(angle) * float(v[i][place])
            assert float(eps_hat[i][place]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(predict_z_0(SCHEDULE, z_t, t, eps_hat), z_0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_answers_its_target_is_understood_as_the_true_noise(prediction):
    schedule = make_schedule(ScheduleConfig(prediction=prediction))
    z_0, t, eps = noised_inputs()
    target = target_of(schedule, z_0, t, eps)
    assert torch.equal(target, eps if prediction == "eps" else velocity(schedule, z_0, t, eps))
    torch.testing.assert_close(eps_of(schedule, q_sample(schedule, z_0, t, eps), t, target), eps, rtol=0, atol=1e-12)


def test_a_step_is_the_posterior_mean_plus_its_standard_deviation_times_the_noise():
    """DDPM Eq. 6, per sample: each of the batch at its own t."""
    z_0, t, eps = noised_inputs()
    z_t, t_prev, noise = q_sample(SCHEDULE, z_0, t, eps), torch.tensor([-1, 498, 900]), tensor("noise", z_0.shape)
    mean, variance = posterior(SCHEDULE, z_0, z_t, t, t_prev)
    stepped = ddpm_step(SCHEDULE, z_t, t, t_prev, eps, noise)
    torch.testing.assert_close(stepped, mean + variance**0.5 * noise, rtol=0, atol=1e-12)


def test_the_step_beyond_the_first_needs_no_noise_and_returns_the_predicted_z_0():
    z_t, eps_hat, t = tensor("z_t", (2, 4, 2, 2)), tensor("eps_hat", (2, 4, 2, 2)), torch.tensor([0, 19])
    stepped = ddpm_step(SCHEDULE, z_t, t, torch.tensor([-1, -1]), eps_hat, noise=None)
    torch.testing.assert_close(stepped, predict_z_0(SCHEDULE, z_t, t, eps_hat), rtol=0, atol=1e-12)
    with pytest.raises(AssertionError, match="only the last step"):
        ddpm_step(SCHEDULE, z_t, t, torch.tensor([-1, 0]), eps_hat, noise=None)
