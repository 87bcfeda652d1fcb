"""Lesson 4, the hole filled. Take the noise off, then undo the factor of the signal."""

from torch import Tensor

from ldm_us.diffusion.ddpm import Schedule, level


def predict_z_0(schedule: Schedule, z_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """What eps_hat = prediction (b, c, h, w) says of the clean latents."""
    alpha_bar = level(schedule.alpha_bar, t, like=z_t)
    return (z_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
