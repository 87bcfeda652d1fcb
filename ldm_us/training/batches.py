"""The stream of batches: every order and every draw is a function of (seed, step), so none of it needs saving."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_us.data.mixing import mixed_indices
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.dataset import TrainingSet, to_signed

ALL = slice(None)
MIXING = 3  # stream of the run's seed that draws the folder and the image of each slot


class ImageBatch(NamedTuple):
    """What the vae stage sees in one step."""

    x: Tensor  # (b, 3, H, W) in [-1, 1]
    noise: Tensor  # (b, c, h, w), for the draw from the posterior
    decoder_noise: Tensor  # (b, N), what the decoder adds; N = 0 for one that adds none


class LatentBatch(NamedTuple):
    """What the unet and controlnet stages see in one step, every random number included."""

    z_0: Tensor  # (b, c, h, w), scaled latents drawn from the posterior
    prompt_index: Tensor  # (b,) int64 into TrainingSet.prompts; 0 where the caption was dropped
    mask: Tensor  # (b, 1, H, W) bool, what the ControlNet sees; (b, 0, 0, 0) where none learns
    t: Tensor  # (b,) int64
    eps: Tensor  # (b, c, h, w)


Batch = ImageBatch | LatentBatch


def stream_generator(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator of its own for (seed, counters), independent of every other."""
    state = np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def batch_indices(n: int, seed: int, step: int, size: int) -> Tensor:
    """Indices (size,) of step `step`: each epoch is a new permutation of 0..n-1, and batches run across epochs."""
    return torch.stack([epoch_order(n, seed, p // n)[p % n] for p in range(step * size, (step + 1) * size)])


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order (n,) of an epoch; it is the same for all its steps."""
    return torch.randperm(n, generator=stream_generator(seed, 0, epoch))


def step_indices(data: TrainingSet, seed: int, step: int, size: int) -> Tensor:
    """The images (size,) of a step: epoch after epoch, or drawn from the shares of folders and classes."""
    if data.weights is None:
        return batch_indices(len(data.records), seed, step, size)
    assert data.folder_index is not None
    by_folder = data.folder_index.argsort(stable=True)
    sizes = data.folder_index.bincount(minlength=len(data.weights)).tolist()
    return by_folder[mixed_indices(sizes, data.weights, stream_generator(seed, MIXING, step), size)]


def own_places(size: int, parts: int, rank: int, processes: int) -> list[Tensor]:
    """The places in a batch of `size` that a process takes, one (b,) for each of its parts: every processes-th part."""
    return list(torch.arange(size).chunk(parts * processes)[rank::processes])


def image_batch(
    data: TrainingSet,
    latent_shape: tuple[int, ...],
    seed: int,
    step: int,
    size: int,
    flip: bool,
    noise_size: int = 0,
    own: Tensor | slice = ALL,
) -> ImageBatch:
    """The images of a step of the vae stage, at the places `own` of its batch; noise_size numbers of decoder noise.

    Random numbers are drawn for the whole batch, so that no share changes them; all else is done for the share alone.
    """
    generator = stream_generator(seed, 1, step)
    index = step_indices(data, seed, step, size)[own]
    mirrored = draw_mirrored(size, flip, generator)[own]
    assert data.pixels is not None
    noise = torch.randn(size, *latent_shape, generator=generator)[own]
    decoder_noise = torch.randn(size, noise_size, generator=generator)[own]  # last: without it all else is the same
    return ImageBatch(mirror(to_signed(data.pixels[index]), mirrored), noise, decoder_noise)


def latent_batch(
    data: TrainingSet,
    scale: float,
    timesteps: int,
    seed: int,
    step: int,
    size: int,
    flip: bool,
    caption_dropout: float,
    offset_noise: float = 0.0,
    masked: bool = True,
    own: Tensor | slice = ALL,
) -> LatentBatch:
    """The latents, prompts, masks and noise of a step of the unet or controlnet stage, at its batch's places `own`.

    offset_noise shifts the noise of every channel of an image by as much as it says, times a normal number: a network
    can then learn to change the mean grey (Guttenberg 2023, "Diffusion with Offset Noise").
    """
    generator = stream_generator(seed, 1, step)
    index = step_indices(data, seed, step, size)
    mirrored = draw_mirrored(size, flip, generator)
    latent = (size, *data.moments[int(index[0])].shape[1:])  # (b, 2c, h, w), mean and log variance
    noise = torch.randn(latent[0], latent[1] // 2, *latent[2:], generator=generator)[own]
    dropped = torch.rand(size, generator=generator)[own] < caption_dropout
    t = torch.randint(0, timesteps, (size,), generator=generator)[own]
    eps = torch.randn(latent[0], latent[1] // 2, *latent[2:], generator=generator)[own]
    if offset_noise:  # drawn last: without it every other number of a batch is the same
        eps = eps + offset_noise * torch.randn(latent[0], latent[1] // 2, 1, 1, generator=generator)[own]

    index, mirrored = index[own], mirrored[own]
    moments = [data.moments[i][int(flipped)] for i, flipped in zip(index.tolist(), mirrored, strict=True)]
    posterior = posterior_from_moments(torch.stack(moments), scale)
    masks = mirror(data.masks[index], mirrored) if masked else torch.zeros(len(index), 0, 0, 0, dtype=torch.bool)
    prompt_index = data.prompt_index[index].masked_fill(dropped, 0)
    return LatentBatch(posterior.mean + posterior.std * noise, prompt_index, masks, t, eps)


def draw_mirrored(size: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Which of the images of a batch are mirrored: (size,) bool."""
    return (torch.rand(size, generator=generator) < 0.5) & flip


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the chosen images left to right: (b, c, H, W), (b,) -> (b, c, H, W)."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
