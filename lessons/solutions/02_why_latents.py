"""Lesson 2, the hole filled. The scale of a distribution is that of its mean and of its standard deviation."""

import torch

from ldm_us.networks.vae import DiagonalGaussian


def posterior_from_moments(moments: torch.Tensor, scale: float) -> DiagonalGaussian:
    """(b, 2c, h, w), means and then log variances -> the distribution of the scaled latents."""
    mean, logvar = moments.chunk(2, dim=1)
    std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))  # half of the logarithm: the square root of the variance
    return DiagonalGaussian(scale * mean, scale * std)
