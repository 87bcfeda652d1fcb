"""The files that samples are drawn from: masks, images to edit, further ControlNets with their hints.

All are checked before the first sample is drawn.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.records import LESION_CLASSES, image_tensor, mask_tensor, open_image, prompted_class, union_of_masks
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.inpainting import check_region
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.synthesis.plan import Plan
from ldm_us.synthesis.recipe import AddedControl, FromImage, FromNoise, Inversion, Recipe, Region
from ldm_us.synthesis.subjects import check_mask
from ldm_us.synthesis.weights import read_controlnet

MODES = ("1", "L", "RGB")  # of an image to be edited


def check_masks(plan: Plan, size: int) -> tuple[str | None, list[str]]:
    """Read every mask of a plan; -> SHA-256 of all as the ControlNet sees them, in order, and notes for the user.

    Raise ValueError for one that does not fit.
    """
    if not plan.masked:
        lesions = [label for label in LESION_CLASSES if any(subject.label == label for subject in plan.subjects)]
        if plan.layout == "busi" and lesions:
            return None, [f"without --mask there are no mask files for {' and '.join(lesions)}."]
        return None, []
    digest, resized = hashlib.sha256(), []
    for subject in plan.subjects:
        union = union_of_masks(subject.masks)
        mask = mask_tensor(union, size)
        where = f"{subject.masks[0] if subject.masks else subject.name} at {size}x{size} pixels"
        check_mask(subject.label, bool(mask.any()), where)
        if union is not None and union.size != (size, size):
            resized.append(f"{subject.masks[0].name} of {union.width}x{union.height}")
        digest.update(bytes(mask.byte().numpy().data))
    if not resized:
        return digest.hexdigest(), []
    rest = f" and {len(resized) - 1} other masks" if len(resized) > 1 else ""
    return digest.hexdigest(), [f"{resized[0]}{rest} resized to {size}x{size}, each pixel from the nearest one."]


def edited_images(recipe: Recipe, batch: int) -> Tensor:
    """The image to be edited, once for each sample: (b, 3, size, size) in [-1, 1].

    It has to have the size of the samples, so that pixels stay pixels.
    """
    assert isinstance(recipe.begin, FromImage | Region | Inversion)
    path, size = recipe.begin.init, recipe.size
    picture = open_image(path)
    if picture.mode not in MODES:
        raise ValueError(f"--init {path} has mode {picture.mode}. Save it as 8-bit grey or RGB.")
    if picture.size != (size, size):
        raise ValueError(
            f"--init {path} is {picture.width}x{picture.height}, but the samples are {size}x{size}. Resize it, or give "
            "--size."
        )
    return image_tensor(picture, size).expand(batch, -1, -1, -1)


def load_masks(path: Path, size: int, batch: int) -> Tensor:
    """The mask of an edit, once for each sample: (b, 1, size, size) in {0, 1}."""
    return mask_tensor(union_of_masks([path]), size).expand(batch, -1, -1, -1)


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
