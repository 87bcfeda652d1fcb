"""The stream of batches: every order and every draw is a function of (seed, step), so none of it needs saving."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_us.data.augment import DEVIATES, augmented
from ldm_us.data.mixing import mixed_indices
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.dataset import TrainingSet, to_signed

ALL = slice(None)
VARIED = 5  # stream of the run's seed that --augment draws from
MIXING = 3  # stream of the run's seed that draws the folder and the image of each slot
TURNS = 11  # the same of the order in which sizes take turns


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


class PixelBatch(NamedTuple):
    """What these stages see with --augment: the same, but for latents, which are made of varied images when needed."""

    x: Tensor  # (b, 3, H, W) in [-1, 1]
    noise: Tensor  # (b, c, h, w), for the draw from the posterior
    prompt_index: Tensor  # these four as above
    mask: Tensor
    t: Tensor
    eps: Tensor


Batch = ImageBatch | LatentBatch | PixelBatch


def stream_generator(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator of its own for (seed, counters), independent of every other."""
    state = np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def batch_indices(n: int, seed: int, step: int, size: int) -> Tensor:
    """Indices (size,) of step `step`: each epoch is a new permutation of 0..n-1, and batches run across epochs."""
    return torch.stack([epoch_order(n, seed, p // n)[p % n] for p in range(step * size, (step + 1) * size)])


@lru_cache(maxsize=32)
def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order (n,) of an epoch; it is the same for all its steps."""
    return torch.randperm(n, generator=stream_generator(seed, 0, epoch))


def step_indices(data: TrainingSet, seed: int, step: int, size: int) -> Tensor:
    """The images (size,) of a step: epoch after epoch, or drawn from the shares of folders and classes.

    Images of several sizes take turns, those of one size a step.
    """
    several = list(data.members.values()) if len(data.members) > 1 else []
    if data.weights is None:
        if not several:
            return batch_indices(len(data.records), seed, step, size)
        turn = turn_of(tuple(map(len, several)), seed, step, size)
        return several[turn.bucket][batch_indices(len(several[turn.bucket]), seed, turn.number, size)]
    assert data.folder_index is not None
    if several:
        generator = stream_generator(seed, MIXING, step)
        in_folder = data.folder_index.bincount(minlength=len(data.weights))
        chance = (torch.tensor(data.weights, dtype=torch.float64) / in_folder)[data.folder_index]  # of each image
        of_each = torch.stack([chance[index].sum() for index in several])
        index = several[int(torch.multinomial(of_each, 1, generator=generator))]
        return index[torch.multinomial(chance[index], size, replacement=True, generator=generator)]
    by_folder = data.folder_index.argsort(stable=True)
    sizes = data.folder_index.bincount(minlength=len(data.weights)).tolist()
    return by_folder[mixed_indices(sizes, data.weights, stream_generator(seed, MIXING, step), size)]


class Turn(NamedTuple):
    """Which bucket a step belongs to, and how many of its turns were before."""

    bucket: int
    number: int


def turn_of(images: tuple[int, ...], seed: int, step: int, size: int) -> Turn:
    """Whose turn a step of `size` images is, among buckets of so many images: every image comes as often as any other.

    In an epoch a bucket has the whole turns that its images fill, n / size of them, with what is left over carried on
    to the next one, and their order is drawn for each epoch. A bucket of fewer images than a step has a turn in some.
    """
    most = (step + 1 + len(images)) * size // sum(images) + 2  # epochs, by whose end this step is over
    epoch = bisect_right(range(most), step, key=lambda epoch: sum(turns_before(images, epoch, size))) - 1
    before, order = turns_before(images, epoch, size), turn_order(images, seed, epoch, size)
    place = step - sum(before)
    bucket = int(order[place])
    return Turn(bucket, before[bucket] + int((order[:place] == bucket).sum()))


def turns_before(images: Sequence[int], epoch: int, size: int) -> list[int]:
    """How many turns each bucket had before an epoch: epoch * n / size, rounded."""
    return [(2 * epoch * n + size) // (2 * size) for n in images]


@lru_cache(maxsize=2)
def turn_order(images: tuple[int, ...], seed: int, epoch: int, size: int) -> Tensor:
    """The bucket of each step of an epoch, (steps,)."""
    before, after = (torch.tensor(turns_before(images, e, size)) for e in (epoch, epoch + 1))
    turns = torch.arange(len(images)).repeat_interleave(after - before)
    return turns[torch.randperm(len(turns), generator=stream_generator(seed, TURNS, epoch))]


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
    variations: Sequence[str] = (),
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
    x = mirror(to_signed(data.pixels[index]), mirrored)
    if variations:
        x, _ = varied(x, torch.zeros_like(x[:, :1], dtype=torch.bool), seed, step, size, own, variations)
    return ImageBatch(x, noise, decoder_noise)


def varied(
    x: Tensor, masks: Tensor, seed: int, step: int, size: int, own: Tensor | slice, variations: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Images (b, 3, H, W) in [-1, 1] and masks (b, 1, H, W) at the places `own` of a step, varied together."""
    deviates = 2 * torch.rand(size, DEVIATES, generator=stream_generator(seed, VARIED, step))[own] - 1
    grey, masks = augmented(x[:, :1] / 2 + 0.5, masks, deviates, variations)
    return (2 * grey - 1).expand(-1, 3, -1, -1), masks


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
    variations: Sequence[str] = (),
    latent_shape: tuple[int, ...] = (),
) -> LatentBatch | PixelBatch:
    """The latents, prompts, masks and noise of a step of the unet or controlnet stage, at its batch's places `own`.

    offset_noise shifts the noise of every channel of an image by as much as it says, times a normal number: a network
    can then learn to change the mean grey (Guttenberg 2023, "Diffusion with Offset Noise"). With `variations` latents
    (c, h, w) are still to be made: a cached one can not be turned. All other numbers are the same as without.
    """
    generator = stream_generator(seed, 1, step)
    index = step_indices(data, seed, step, size)
    mirrored = draw_mirrored(size, flip, generator)
    if not variations:
        _, channels, *sides = data.moments[int(index[0])].shape  # (2, 2c, h, w), mean and log variance
        latent_shape = (channels // 2, *sides)
    noise = torch.randn(size, *latent_shape, generator=generator)[own]
    dropped = torch.rand(size, generator=generator)[own] < caption_dropout
    t = torch.randint(0, timesteps, (size,), generator=generator)[own]
    eps = torch.randn(size, *latent_shape, generator=generator)[own]
    if offset_noise:  # drawn last: without it every other number of a batch is the same
        eps = eps + offset_noise * torch.randn(size, latent_shape[0], 1, 1, generator=generator)[own]

    index, mirrored = index[own], mirrored[own]
    prompt_index = data.prompt_index[index].masked_fill(dropped, 0)
    if variations:
        assert data.pixels is not None
        x, masks = to_signed(data.pixels[index]), data.masks[index]
        x, masks = varied(mirror(x, mirrored), mirror(masks, mirrored), seed, step, size, own, variations)
        return PixelBatch(x, noise, prompt_index, masks if masked else masks[:, :0], t, eps)
    moments = [data.moments[i][int(flipped)] for i, flipped in zip(index.tolist(), mirrored, strict=True)]
    posterior = posterior_from_moments(torch.stack(moments), scale)
    masks = mirror(data.masks[index], mirrored) if masked else torch.zeros(len(index), 0, 0, 0, dtype=torch.bool)
    return LatentBatch(posterior.mean + posterior.std * noise, prompt_index, masks, t, eps)


def draw_mirrored(size: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Which of the images of a batch are mirrored: (size,) bool."""
    return (torch.rand(size, generator=generator) < 0.5) & flip


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the chosen images left to right: (b, c, H, W), (b,) -> (b, c, H, W)."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
