"""Draw the samples that are to be measured: grey, a batch at a time, sample i with seed + i."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Step, generate


@dataclass(frozen=True)
class SampleSettings:
    """How to sample; the defaults are those of sample.py."""

    seed: int = 0  # of the first sample
    steps: int = 50  # DDIM steps
    guidance: float | None = None  # None: what the model's config says
    control_scale: float | None = None
    batch: int = 8  # images at a time


def draw_samples(
    model: LatentDiffusion,
    prompts: Sequence[str],
    settings: SampleSettings,
    masks: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """n prompts, masks (n, 1, H, W) in {0, 1} or None -> (n, 1, H, W) in [0, 1] on the CPU."""
    chunks = []
    for i in range(0, len(prompts), settings.batch):
        chunk = list(prompts[i : i + settings.batch])
        images = generate(
            model,
            chunk,
            masks=None if masks is None else masks[i : i + settings.batch],
            seeds=list(range(settings.seed + i, settings.seed + i + len(chunk))),
            steps=settings.steps,
            guidance=model.config.guidance(masks is not None) if settings.guidance is None else settings.guidance,
            control_scale=model.config.control.scale if settings.control_scale is None else settings.control_scale,
            on_step=on_step,
        )
        chunks.append(images.mean(dim=1, keepdim=True).cpu())  # the three channels are one grey image
    return torch.cat(chunks)
