"""Strips: one sample in the making, the latents and the clean ones predicted from them, decoded, at a few timesteps."""

from collections.abc import Sequence

import torch
from PIL import Image

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Step, decode
from ldm_us.files.pictures import labelled_grid, to_picture

COLUMNS = 8


def trajectory(
    model: LatentDiffusion, steps: Sequence[Step], *, sample: int = 0, columns: int = COLUMNS
) -> Image.Image:
    """Draw what `on_step` saw of one sample of a batch: above, z after the step at t; below, z_0 as predicted at t.

    The columns are spread evenly over the steps, the first and the last included.
    """
    if not steps:
        raise ValueError("a trajectory needs at least one step.")
    chosen = torch.linspace(0, len(steps) - 1, min(columns, len(steps))).round().long().tolist()
    latents = [steps[i].z[sample] for i in chosen], [steps[i].z_0_hat[sample] for i in chosen]
    rows = [[to_picture(x.mean(dim=0, keepdim=True)) for x in decode(model, torch.stack(row))] for row in latents]
    return labelled_grid(rows, ("z after step t", "predicted z_0"), [f"t = {steps[i].t}" for i in chosen])
