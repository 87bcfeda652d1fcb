"""Noise: each sample's own, from its own seed: the latents z_T that it starts from, what its decoder and grain add."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.grain import noise_shape
from ldm_us.diffusion.model import LatentDiffusion, check_size, sides
from ldm_us.diffusion.start_prior import start_latents


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator of its own for each sample."""
    return [torch.Generator().manual_seed(torch_seed(seed)) for seed in seeds]


def torch_seed(seed: int) -> int:
    """A seed for torch's generators on the CPU, which take 32 bits; a larger one is mixed into those."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def draw(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (b, ...) float32 on the CPU, sample i from generator i."""
    assert len(generators) == shape[0]
    return torch.stack([torch.randn(tuple(shape[1:]), generator=generator) for generator in generators])


def latent_shape(model: LatentDiffusion, size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """(c, h, w) of the latents of an image of `size`: the side of a square, or (height, width)."""
    size = model.config.image_size if size is None else size
    check_size(model.config, size)
    height, width = (side // model.config.vae.downsampling for side in sides(size))
    return model.config.vae.latent_channels, height, width


def start_from(
    model: LatentDiffusion,
    eps: Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    prior: bool,
    prompts: Sequence[str],
) -> Tensor:
    """z_T (b, c, h, w) of standard normal eps: that itself, or of the model's start prior of each prompt."""
    if model.prior is None or not prior:
        return eps
    w = draw((len(eps), model.prior.rank), generators).to(eps)
    t = torch.full((1,), ddim_timesteps(model.schedule, steps)[0][0], device=eps.device)
    parts = zip(prompts, eps.split(1), w.split(1), strict=True)
    return torch.cat([start_latents(model.schedule, model.prior.of(prompt), t, *noise) for prompt, *noise in parts])


def decoder_noise(model: LatentDiffusion, z_0: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """The noise (b, N) that latents (b, c, h, w) are decoded with; N = 0 where the decoder adds none."""
    return draw((len(z_0), model.vae.noise_size(*z_0.shape[2:])), generators)


def with_grain(model: LatentDiffusion, x: Tensor, wanted: bool, generators: Sequence[torch.Generator]) -> Tensor:
    """Images (b, 3, H, W) in [0, 1] with the grain of the model, where it has one and it is wanted."""
    if model.grain is None or not wanted:
        return x
    return model.grain(x, draw(noise_shape(x), generators).to(x))
