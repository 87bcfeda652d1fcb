"""DDPM: the noise schedule, noising latents, one ancestral step back.   Paper: arXiv 2006.11239, Eq. 4, 6, 7, 15.

A network predicts the noise or v, as its schedule says; `predict_z_0` and `eps_of` are what either says of z_t.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ldm_us.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Noise levels for t = 0 .. T-1, each (T,) float64. t = 0 here is the paper's t = 1."""

    beta: Tensor
    alpha: Tensor
    alpha_bar: Tensor  # product of the alphas up to t: the share of signal variance left in z_t
    config: ScheduleConfig
    whole_spacing: bool = False  # of sampled timesteps, for any number of steps: pictures of before `Recipe.edition` 2

    @property
    def timesteps(self) -> int:
        """T."""
        return self.config.timesteps

    @property
    def ends_in_noise(self) -> bool:
        """Whether z_T holds nothing of z_0."""
        return float(self.alpha_bar[-1]) == 0

    @property
    def final_alpha_bar(self) -> float:
        """The noise level on which DDIM's last step lands."""
        return 1.0 if self.config.final_alpha_bar_one else float(self.alpha_bar[0])


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Build the schedule in float64: "scaled linear", which CompVis calls "linear"."""
    start, end = config.beta_start**0.5, config.beta_end**0.5
    # On the CPU even where load_model builds the modules on the meta device: nothing would fill these later.
    roots = torch.linspace(start, end, config.timesteps, dtype=torch.float64, device="cpu")
    alpha = 1.0 - roots**2  # DDPM section 2, above Eq. 4
    alpha_bar = torch.cumprod(alpha, dim=0)
    if config.zero_terminal_snr:
        alpha_bar = end_in_noise(alpha_bar)
        alpha = alpha_bar / torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    return Schedule(1.0 - alpha, alpha, alpha_bar, config)


def end_in_noise(alpha_bar: Tensor) -> Tensor:
    """alpha_bar (T,) shifted and scaled so that the last is 0 and the first stays: what is seen last is pure noise."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2  # Rescale algorithm 1


def level(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Look the values (T,) up at t (b,) and shape them to scale `like` (b, c, h, w): -> (b, 1, 1, 1)."""
    return on_device(values, like.dtype, like.device)[t].view(-1, 1, 1, 1)


@lru_cache(maxsize=64)
def on_device(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table of this very tensor, sent to a device once: to send it in every step would wait for the device."""
    return values.to(dtype).to(device)  # Apple's GPUs have no float64


def q_sample(schedule: Schedule, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Noise clean latents to step t in one jump: (b, c, h, w), (b,), (b, c, h, w) -> z_t (b, c, h, w)."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_0)
    return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * eps  # DDPM Eq. 4


def predict_z_0(schedule: Schedule, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """What the network answered to z_t, eps or v, as clean latents (b, c, h, w). Not clipped: they go beyond +-1."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_t)
    if schedule.config.prediction == "v":  # nothing is divided: it holds at alpha_bar = 0 too
        return alpha_bar.sqrt() * z_t - (1 - alpha_bar).sqrt() * prediction  # Progressive Distillation appendix D
    return (z_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()  # DDPM Eq. 15


def velocity(schedule: Schedule, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """v, the target of v-prediction (Progressive Distillation, arXiv 2202.00512, section 4)."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_0)
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z_0  # Progressive Distillation section 4


def predict_eps_from_v(schedule: Schedule, z_t: Tensor, t: Tensor, v_hat: Tensor) -> Tensor:
    """The noise that v and z_t imply: (b, c, h, w), (b,), (b, c, h, w) -> eps_hat (b, c, h, w)."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_t)
    return (1 - alpha_bar).sqrt() * z_t + alpha_bar.sqrt() * v_hat  # Progressive Distillation appendix D


def target_of(schedule: Schedule, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """What the network of this schedule should answer to z_t: eps or v, (b, c, h, w)."""
    return eps if schedule.config.prediction == "eps" else velocity(schedule, z_0, t, eps)


def eps_of(schedule: Schedule, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """What the network of this schedule answered to z_t, as eps_hat (b, c, h, w)."""
    return prediction if schedule.config.prediction == "eps" else predict_eps_from_v(schedule, z_t, t, prediction)


def posterior(schedule: Schedule, z_0: Tensor, z_t: Tensor, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (b, c, h, w) and variance (b, 1, 1, 1) of q(z_{t_prev} | z_t, z_0).

    The paper has t_prev = t - 1. On a coarser grid the same formulas hold with beta_t taken over the whole jump.
    t_prev = -1 is the clean image, where alpha_bar is 1: the variance is 0 and the mean is z_0.
    """
    alpha_bar = level(schedule.alpha_bar, t, like=z_t)
    one = torch.ones_like(alpha_bar)
    alpha_bar_prev = torch.where(t_prev.view(-1, 1, 1, 1) < 0, one, level(schedule.alpha_bar, t_prev.clamp(min=0), z_t))
    alpha = alpha_bar / alpha_bar_prev  # over the jump; alpha_t when t_prev = t - 1
    beta = 1 - alpha
    mean = (
        alpha_bar_prev.sqrt() * beta / (1 - alpha_bar) * z_0
        + alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar) * z_t
    )  # DDPM Eq. 7
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta  # DDPM Eq. 7, beta tilde: "fixed small"
    return mean, variance


def ddpm_step(
    schedule: Schedule, z_t: Tensor, t: Tensor, t_prev: Tensor, prediction: Tensor, noise: Tensor | None
) -> Tensor:
    """One ancestral step z_t -> z_{t_prev} (DDPM algorithm 2). noise may be None where t_prev is -1."""
    z_0_hat = predict_z_0(schedule, z_t, t, prediction)
    mean, variance = posterior(schedule, z_0_hat, z_t, t, t_prev)
    if noise is None:
        assert bool((t_prev < 0).all()), "only the last step has no noise"
        return mean
    return mean + variance.sqrt() * noise  # DDPM Eq. 6
