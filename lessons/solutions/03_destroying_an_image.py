"""Lesson 3, the hole filled. Roots: alpha_bar and 1 - alpha_bar are shares of the variance."""

from torch import Tensor

from ldm_us.diffusion.ddpm import Schedule, level


def q_sample(schedule: Schedule, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Clean latents (b, c, h, w), t (b,), noise (b, c, h, w) -> z_t (b, c, h, w)."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_0)
    return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * eps
