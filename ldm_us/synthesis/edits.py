"""Samples with the options of edit_options.py: edits of an image, limits of control, pictures of the way."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_us.edit_options import edit_values, sample_batch
from ldm_us.model import LatentDiffusion
from ldm_us.pictures import save_png
from ldm_us.sampling import Step
from ldm_us.synthesis.drawing import Settings, Wanted, cpu_threads


def wants_edit(options: argparse.Namespace) -> bool:
    """Whether any of the options is used."""
    return any(value is not None for value in edit_values(options).values())


def was_edited(options: argparse.Namespace, text: Mapping[str, str]) -> list[str]:
    """The options that the fields of a picture name; it cannot be drawn again from its fields alone."""
    return [f"--{name.replace('_', '-')}" for name in edit_values(options) if name in text]


def draw_edits(
    options: argparse.Namespace,
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    settings: Settings,
    out: Path,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """n samples -> images (n, 3, H, W) in [0, 1] on the CPU, one at a time; pictures of the way go to `out`."""
    images = []
    for prompt, seed, mask in wanted:
        masks = None if mask is None else mask[None]
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16")
        with torch.no_grad(), cpu_threads(settings.threads), autocast:
            x, pictures = sample_batch(options, model, [prompt], masks, [seed], settings.size, on_step)
        images.append(x.float().cpu())
        for name, picture in pictures.items():
            save_png(picture, out / (f"{name}.png" if f"seed{seed}" in name else f"{name}_seed{seed}.png"))
    return torch.cat(images)
