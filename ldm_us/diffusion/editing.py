"""Editing: image -> latents, noised part of the way -> image under other conditions.   SDEdit (arXiv 2108.01073).

An edit by inversion takes the noise that leads to the image in place of a random one: see `inversion.py`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import q_sample
from ldm_us.diffusion.guidance import Conditions, check_latents
from ldm_us.diffusion.model import LatentDiffusion, check_size
from ldm_us.diffusion.noise import draw
from ldm_us.diffusion.sampling import Sampling, Step, denoise
from ldm_us.diffusion.tiles import moments_of
from ldm_us.networks.vae import posterior_from_moments


@torch.no_grad()
def image_to_image(
    model: LatentDiffusion,
    x: Tensor,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    strength: float,
) -> Iterator[Step]:
    """Walk images x (b, 3, H, W) in [-1, 1] to others that keep their coarse structure: `decode` the last Step.

    strength is the share of the steps that are walked: 0 gives the autoencoder's reconstruction, 1 hardly sees x. The
    noise is drawn from one generator an image. Raise ValueError for a strength outside 0..1 and for what does not fit.
    """
    start = first_step(strength, sampling.steps)
    z = encode_images(model, x)
    check_latents(conditions, z)
    check_generators(generators, z)
    if start < sampling.steps:
        t = torch.full((len(z),), ddim_timesteps(model.schedule, sampling.steps)[start][0], device=z.device)
        z = q_sample(model.schedule, z, t, draw(z.shape, generators).to(z))  # SDEdit section 3
    yield from denoise(model, z, conditions, generators, sampling, start)


@torch.no_grad()
def encode_images(model: LatentDiffusion, x: Tensor) -> Tensor:
    """(b, 3, H, W) in [-1, 1] -> mean scaled latents (b, c, h, w) float32, on the model's device."""
    check_images(model, x)
    weight = model.vae.quant_conv.weight
    return posterior_from_moments(moments_of(model, x.to(weight)), model.vae.scale).mean.float()


def first_step(strength: float, steps: int) -> int:
    """The index of the first step to walk: `steps` of them at strength 1, none at 0, at least one above 0."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength {strength}: use 0 (the image as it is) to 1 (hardly anything of it).")
    return steps - max(round(strength * steps), int(strength > 0))


def check_images(model: LatentDiffusion, x: Tensor) -> None:
    """Raise ValueError unless x are images (b, 3, H, W) in [-1, 1] of a size that the networks can halve."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(x.shape)}: use (batch, 3, height, width), grey in three channels.")
    for side in x.shape[2:]:
        check_size(model.config, side)
    if float(x.min()) < -1 or float(x.max()) > 1:
        raise ValueError(f"images from {float(x.min()):.3g} to {float(x.max()):.3g}: scale them to -1..1.")


def check_generators(generators: Sequence[torch.Generator], z: Tensor) -> None:
    """Raise ValueError unless there is one generator, and so one seed, per image."""
    if len(generators) != len(z):
        raise ValueError(f"{len(generators)} seeds for {len(z)} images: give one per image.")
