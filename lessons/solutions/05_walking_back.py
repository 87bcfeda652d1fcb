"""Lesson 5, the hole filled. Old and new noise have together the variance 1 - alpha_bar_prev."""

import torch

from ldm_us.diffusion.ddpm import level


def ddim_step(schedule, z_t, t, t_prev, prediction, eta=0.0, noise=None):
    """One step z_t -> z_{t_prev}; prediction is eps_hat, noise None where eta is 0."""
    ab, ab_prev = level(schedule.alpha_bar, t, z_t), level(schedule.alpha_bar, t_prev.clamp(min=0), z_t)
    ab_prev = torch.where(t_prev.view(-1, 1, 1, 1) < 0, schedule.final_alpha_bar, ab_prev)  # -1: beyond the first
    sigma = eta * ((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)).clamp(min=0).sqrt()  # DDIM Eq. 16
    z_0_hat = (z_t - (1 - ab).sqrt() * prediction) / ab.sqrt()
    z_prev = ab_prev.sqrt() * z_0_hat + (1 - ab_prev - sigma**2).clamp(min=0).sqrt() * prediction
    return z_prev if noise is None else z_prev + sigma * noise
