"""The noise schedule: Stable Diffusion's numbers, and the two choices that samplers read from its config."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_us.config import ScheduleConfig
from ldm_us.diffusion.ddpm import level, make_schedule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "schedulers.npz")


def test_alpha_bar_equals_the_original_schedule():
    """DDPM section 2, with the golden numbers of the original implementation."""
    alpha_bar = make_schedule(ScheduleConfig()).alpha_bar.numpy()
    assert alpha_bar.dtype == np.float64
    np.testing.assert_allclose(alpha_bar, GOLDEN["alphas_cumprod"], rtol=1e-9)


def test_alpha_bar_is_the_running_product_of_one_minus_beta():
    """DDPM section 2: alpha = 1 - beta, alpha_bar their product; beta's square roots are linear in t."""
    schedule = make_schedule(ScheduleConfig())
    low, high, product = math.sqrt(0.00085), math.sqrt(0.012), 1.0
    for t in range(1000):
        beta = (low + (high - low) * t / 999) ** 2
        product *= 1.0 - beta
        assert float(schedule.beta[t]) == pytest.approx(beta, rel=1e-12)
        assert float(schedule.alpha[t]) == pytest.approx(1.0 - beta, rel=1e-12)
        assert float(schedule.alpha_bar[t]) == pytest.approx(product, rel=1e-11)


def test_the_last_step_keeps_a_share_of_0_00466_of_the_signal():
    assert round(float(make_schedule(ScheduleConfig()).alpha_bar[999]), 5) == 0.00466


def test_the_golden_numbers_tell_linear_betas_from_scaled_linear_ones():
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), dim=0).numpy()
    assert np.abs(alpha_bar / GOLDEN["alphas_cumprod"] - 1).max() > 0.1


def test_alpha_bar_falls_strictly_between_1_and_0():
    alpha_bar = make_schedule(ScheduleConfig()).alpha_bar
    assert alpha_bar[0] < 1
    assert alpha_bar[-1] > 0
    assert bool((alpha_bar.diff() < 0).all())


def test_ddim_lands_on_alpha_bar_0_by_default_and_on_1_where_asked():
    config = ScheduleConfig()
    schedule = make_schedule(config)
    assert schedule.final_alpha_bar == float(schedule.alpha_bar[0]) < 1
    assert make_schedule(dataclasses.replace(config, final_alpha_bar_one=True)).final_alpha_bar == 1.0


def test_the_schedule_has_the_asked_number_of_timesteps():
    schedule = make_schedule(ScheduleConfig(timesteps=7))
    assert schedule.timesteps == len(schedule.beta) == len(schedule.alpha) == len(schedule.alpha_bar) == 7


def test_the_schedule_holds_numbers_where_modules_are_built_on_the_meta_device():
    with torch.device("meta"):
        schedule = make_schedule(ScheduleConfig())
    assert torch.equal(schedule.alpha_bar, make_schedule(ScheduleConfig()).alpha_bar)


def test_level_looks_up_one_value_a_sample_in_the_dtype_it_will_scale():
    values = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    found = level(values, torch.tensor([2, 0]), like=torch.zeros(2, 4, 8, 8))
    assert found.shape == (2, 1, 1, 1)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([0.3, 0.1])
