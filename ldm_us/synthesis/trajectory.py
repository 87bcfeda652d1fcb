"""Strips: one sample in the making, the latents and the clean ones predicted from them, decoded, at a few timesteps."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Step, decode
from ldm_us.files.pictures import labelled_grid, to_picture

COLUMNS = 8


def moments(steps: Sequence[Step], columns: int = COLUMNS) -> list[int]:
    """The indices of a few steps, spread evenly, the first and the last included. Raise ValueError without steps."""
    if not steps:
        raise ValueError("a trajectory needs at least one step.")
    return torch.linspace(0, len(steps) - 1, min(columns, len(steps))).round().long().tolist()


def decoded(model: LatentDiffusion, latents: Sequence[Tensor]) -> list[Image.Image]:
    """Latents (c, h, w) each as a grey picture."""
    return [to_picture(x.mean(dim=0, keepdim=True)) for x in decode(model, torch.stack(list(latents)))]


def trajectory(
    model: LatentDiffusion, steps: Sequence[Step], *, sample: int = 0, columns: int = COLUMNS
) -> Image.Image:
    """Draw the steps of one sample of a batch: above, z after the step at t; below, z_0 as predicted at t."""
    chosen = [steps[i] for i in moments(steps, columns)]
    rows = [decoded(model, [step.z[sample] for step in chosen])]
    rows.append(decoded(model, [step.z_0_hat[sample] for step in chosen]))
    return labelled_grid(rows, ("z after step t", "predicted z_0"), [f"t = {step.t}" for step in chosen])
