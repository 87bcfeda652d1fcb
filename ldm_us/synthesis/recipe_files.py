"""The files that a Recipe names: further ControlNets and their hints, images and masks of an edit."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from ldm_us.data.records import open_image, prompted_class
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.inpainting import check_region
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.synthesis.drawing import edited_images, load_masks
from ldm_us.synthesis.recipe import AddedControl, FromNoise, Inversion, Recipe, Region
from ldm_us.synthesis.subjects import check_mask
from ldm_us.synthesis.weights import read_controlnet


def load_added(added: Sequence[AddedControl], model: LatentDiffusion, device: str, size: int) -> list[ControlTerm]:
    """The terms of these ControlNets, for one sample. Raise ValueError for a file that does not fit the model."""
    terms = []
    for control in added:
        picture = open_image(control.hint).convert("RGB").resize((size, size), Image.Resampling.NEAREST)
        hint = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 255  # (1, 3, size, size)
        controlnet = read_controlnet(control.path, model, device, "--also-control").controlnet
        assert controlnet is not None
        terms.append(ControlTerm(controlnet, hint, control.scale))
    return terms


def check_files(recipe: Recipe, model: LatentDiffusion, prompts: Iterable[str]) -> None:
    """Raise ValueError, before anything is written, for an image, region or mask that does not fit the samples."""
    begin = recipe.begin
    if not isinstance(begin, FromNoise):
        x = edited_images(recipe, 1)
        if isinstance(begin, Region):
            check_region(x, load_masks(begin.inpaint, recipe.size, 1))
    if isinstance(begin, Inversion) and begin.source_mask is not None:
        lesion = bool(load_masks(begin.source_mask, recipe.size, 1).any())
        for prompt in prompts if begin.source_prompt is None else [begin.source_prompt]:
            check_mask(prompted_class(prompt), lesion, f"--source-mask {begin.source_mask}")
        if model.controlnet is None:
            raise ValueError(
                "--source-mask: no ControlNet in the weights to follow it. Train one: `train.py controlnet`."
            )


def resizing_notes(recipe: Recipe) -> list[str]:
    """A sentence for every mask or hint that is not of the samples' size."""
    size, masks = recipe.size, [getattr(recipe.begin, name, None) for name in ("inpaint", "source_mask")]
    files = [*(path for path in masks if path is not None), *(control.hint for control in recipe.controls)]
    sizes = {path: open_image(path).size for path in files}
    return [
        f"{path} of {width}x{height} resized to {size}x{size}, each pixel from the nearest one."
        for path, (width, height) in sizes.items()
        if (width, height) != (size, size)
    ]
