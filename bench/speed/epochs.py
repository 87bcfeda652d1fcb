"""An epoch of one side, in a process of its own: ours with cached latents, diffusers' as its script does it.

Its script runs the autoencoder and the text encoder on every image of every batch; train.py runs them once before the
first epoch. Images are random numbers in memory, so that reading files costs neither side anything.
"""

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from bench.machine import peak_memory
from bench.speed.measuring import Call, timed
from bench.speed.settings import Settings
from bench.speed.training import config_of, fixed_batch, optimizer_of, our_stage, step_of, their_stage
from ldm_us.files.checkpoint import load_model
from ldm_us.networks.clip import tokenize
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.batches import LatentBatch

PROMPT = "an ultrasound image of a breast"


def epoch_side(settings: Settings, side: str) -> dict[str, Any]:
    """Seconds that an epoch over random images takes, and before the first one, for the cache."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(settings.images, 3, settings.size, settings.size, generator=generator) * 2 - 1
    cached, step = (our_epoch if side == "ours" else their_epoch)(settings, images)
    step()  # warms up: moments of the optimizer are made
    seconds = sum(timed(step, settings.clock)[1] for _ in range(settings.images // settings.epoch_batch))
    return {"epoch": seconds, "cache": cached, "peak": peak_memory(settings.device)}


def our_epoch(settings: Settings, images: Tensor) -> tuple[float, Call]:
    """Latents and text states once, then steps from the cache: seconds of the cache, and a step."""
    moments, context, scale, cached = cache_of(settings, images)
    loss, parameters, _ = our_stage(settings, "UNet")
    orders = endless(settings)

    def batch() -> tuple[LatentBatch, Tensor]:
        fixed, _ = fixed_batch(settings, settings.epoch_batch)
        chosen = torch.stack([moments[i] for i in next(orders)])
        z_0 = posterior_from_moments(chosen, scale).sample(torch.Generator().manual_seed(0))
        return fixed._replace(z_0=z_0.to(settings.device)), context.expand(settings.epoch_batch, -1, -1)

    return cached, step_of(settings, loss, parameters, optimizer_of("ours", parameters), batch)


@torch.no_grad()
def cache_of(settings: Settings, images: Tensor) -> tuple[list[Tensor], Tensor, float, float]:
    """The cache of train.py: moments (2c, h, w) of each image, states (1, n, d) of the prompt, the scale, seconds."""
    model = load_model(settings.weights, settings.device, parts=("vae", "text"))
    tokens = tokenize([PROMPT], model.config.text.length).to(settings.device)
    moments_of: Any = lambda x: model.vae.moments(x[None].to(settings.device))[0].cpu()  # noqa: E731
    moments, seconds = timed(lambda: [moments_of(x) for x in images], settings.clock)
    context, more = timed(lambda: model.text(tokens), settings.clock)
    return moments, context, model.vae.scale, seconds + more


def their_epoch(settings: Settings, images: Tensor) -> tuple[float, Call]:
    """The autoencoder and the text encoder in every step, as in their script."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    dtype, device = settings.torch_dtype, settings.device
    vae = AutoencoderKL.from_pretrained(settings.folder / "vae").to(device, dtype).requires_grad_(False)
    text = CLIPTextModel.from_pretrained(settings.folder / "text_encoder").to(device, dtype).requires_grad_(False)
    tokens = tokenize([PROMPT] * settings.epoch_batch, config_of(settings.weights).text.length).to(device)
    loss, parameters, _ = their_stage(settings, "UNet")
    orders = endless(settings)

    def batch() -> tuple[LatentBatch, Tensor]:
        fixed, _ = fixed_batch(settings, settings.epoch_batch)
        x = images[next(orders)].to(device, dtype)
        z_0 = vae.encode(x).latent_dist.sample() * vae.config.scaling_factor
        return fixed._replace(z_0=z_0), text(tokens, return_dict=False)[0]

    return 0.0, step_of(settings, loss, parameters, optimizer_of("theirs", parameters), batch)


def endless(settings: Settings) -> Iterator[list[int]]:
    """Indices of batches, epoch after epoch."""
    numbers = cycle(range(settings.images))
    while True:
        yield list(islice(numbers, settings.epoch_batch))
