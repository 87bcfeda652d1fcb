"""The files that samples are drawn from: masks, images to edit, further ControlNets with their hints.

All are checked before the first sample is drawn.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_us.config import MASK, PICTURE
from ldm_us.data.framing import Framing
from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.opening import fitted, open_image, open_mask
from ldm_us.data.records import framed, image_tensor, lesions_cut_off, mask_tensor, small_lesions, union_of_masks
from ldm_us.data.words import Words
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.inpainting import check_region
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.synthesis.plan import Plan
from ldm_us.synthesis.recipe import FromImage, FromNoise, Inversion, Recipe, Region
from ldm_us.synthesis.subjects import Subject, as_described, check_mask
from ldm_us.synthesis.weights import read_controlnet

MODES = ("1", "L", "RGB")  # of an image to be edited


def check_masks(plan: Plan, recipe: Recipe) -> tuple[str | None, list[str]]:
    """Read every mask of a plan; -> SHA-256 of all as the ControlNet sees them, in order, and notes for the user.

    Raise ValueError for one that does not fit.
    """
    if not plan.masked:
        lesions = sorted({subject.label for subject in plan.subjects if subject.shows})
        if plan.layout == "busi" and lesions:
            return None, [f"without --mask there are no mask files for {' and '.join(lesions)}."]
        return None, []
    digest, resized, small, inverted, cut = hashlib.sha256(), [], [], [], []
    for subject in plan.subjects:
        union = union_of_masks(subject.masks)
        own = recipe.at(subject.size)
        frame = own.size if union is None else own.frame(union)
        mask = mask_tensor(union, frame)
        where = f"{subject.masks[0] if subject.masks else subject.name} at {frame} pixels"
        if plan.hint != PICTURE:
            check_mask(subject.label, subject.shows, bool(mask.any()), where)
        digest.update(bytes(mask.byte().numpy().data))
        if union is None:
            continue
        name = subject.masks[0].name
        resized += [f"{name} of {union.width}x{union.height}"] if union.size != frame.size[::-1] else []
        small += [name] if small_lesions(union, frame) else []
        cut += [name] if lesions_cut_off(union, frame) else []
        inverted += [name] if looks_inverted(union) else []
    size = recipe.size if all(subject.size is None for subject in plan.subjects) else "the size of its samples"
    told = {
        f"resized to {size}, each pixel from the nearest one.": resized,
        f"with lesions smaller than a pixel at {size}: each is kept as one pixel.": small,
        f"cut: a part of the lesion lies outside of what {size} shows, for the model was trained so.": cut,
        "white in most of the picture and in all four corners: only white is lesion. "
        "`python -m ldm_us.data binarize --lesion dark` inverts masks.": inverted,
    }
    others = {end: f" and {len(names) - 1} other masks" if len(names) > 1 else "" for end, names in told.items()}
    return digest.hexdigest(), [f"{names[0]}{others[end]} {end}" for end, names in told.items() if names]


def asked_mask(subject: Subject, recipe: Recipe) -> Tensor:
    """The mask that the samples of a subject follow, at their size: (1, H, W) in {0, 1}."""
    union, own = union_of_masks(subject.masks), recipe.at(subject.size)
    return mask_tensor(union, own.size if union is None else own.frame(union))


def edited_images(recipe: Recipe, batch: int) -> Tensor:
    """The image to be edited, once for each sample: (b, 3, H, W) in [-1, 1].

    It has to have the size of the samples, so that pixels stay pixels, unless the model was trained to keep aspects.
    """
    assert isinstance(recipe.begin, FromImage | Region | Inversion)
    path, size = recipe.begin.init, recipe.size
    picture = open_image(path)
    if picture.mode not in MODES:
        raise ValueError(f"--init {path} has mode {picture.mode}. Save it as 8-bit grey or RGB.")
    if picture.size != size.size[::-1] and recipe.aspect == "squash":
        raise ValueError(
            f"--init {path} is {picture.width}x{picture.height}, but the samples are {size}. Resize it, or give --size."
        )
    return image_tensor(picture, recipe.frame(picture)).expand(batch, -1, -1, -1)


def load_masks(path: Path, recipe: Recipe, batch: int, hint: tuple[str, ...] = MASK) -> Tensor:
    """The mask of an edit, once for each sample: (b, 1, H, W), in {0, 1} unless a ControlNet's hint shows more."""
    union = union_of_masks(as_described(path, [path], hint))
    assert union is not None
    return mask_tensor(union, recipe.frame(union), keep_small=False).expand(batch, -1, -1, -1)  # as old edits were


def load_added(recipe: Recipe, model: LatentDiffusion, device: str) -> list[ControlTerm]:
    """The terms of the further ControlNets, for one sample. Raise ValueError for a file that does not fit the model."""
    terms = []
    for control in recipe.controls:
        picture = open_image(control.hint)
        picture = fitted(picture.convert("RGB"), recipe.frame(picture), Image.Resampling.NEAREST)
        hint = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
        controlnet = read_controlnet(control.path, model, device, "--also-control").controlnet
        assert controlnet is not None
        if len(controlnet.config.hint) > 1:
            raise ValueError(
                f"--also-control {control.path}: it has a channel for each of {', '.join(controlnet.config.hint)}, and "
                f"{control.hint} is a picture. Use it as --controlnet, with --mask."
            )
        terms.append(ControlTerm(controlnet, hint, control.scale))
    return terms


def check_files(recipe: Recipe, model: LatentDiffusion, prompts: Iterable[str], words: Words) -> None:
    """Raise ValueError, before anything is written, for an image, region or mask that does not fit the samples."""
    begin = recipe.begin
    if not isinstance(begin, FromNoise):
        x = edited_images(recipe, 1)
        if isinstance(begin, Region):
            check_region(x, load_masks(begin.inpaint, recipe, 1))
    if isinstance(begin, Inversion) and begin.source_mask is not None:
        lesion = bool(load_masks(begin.source_mask, recipe, 1, model.config.control.hint).any())
        for prompt in prompts if begin.source_prompt is None else [begin.source_prompt]:
            label = words.label_of(recipe.plain(prompt))
            check_mask(label, words.shows(label), lesion, f"--source-mask {begin.source_mask}")
        if model.controlnet is None:
            raise ValueError(
                "--source-mask: no ControlNet in the weights to follow it. Train one: `train.py controlnet`."
            )


def resizing_notes(recipe: Recipe, hint: tuple[str, ...] = MASK) -> list[str]:
    """A sentence for every mask, hint or image to edit that is not of the samples' size; hint: of the ControlNet."""
    size, masks = recipe.size, {"inpaint": MASK, "source_mask": hint}
    given = {path: kind for name, kind in masks.items() if (path := getattr(recipe.begin, name, None)) is not None}
    found = {path: union_of_masks(as_described(path, [path], kind)) for path, kind in given.items()}
    unions = {path: union for path, union in found.items() if union is not None}
    pictures = unions | {control.hint: open_mask(control.hint) for control in recipe.controls}
    sentences = [
        f"{path} of {picture.width}x{picture.height} resized to {size}, each pixel from the nearest one."
        for path, picture in pictures.items()
        if picture.size != size.size[::-1]
    ]
    if not isinstance(recipe.begin, FromNoise) and (picture := open_image(recipe.begin.init)).size != size.size[::-1]:
        sentences.append(f"{recipe.begin.init} of {picture.width}x{picture.height} resized to {size}.")
    lost = {path: small_lesions(union, recipe.frame(union)) for path, union in unions.items()}
    return sentences + [f"{path}: {n} of its regions vanish at {size}." for path, n in lost.items() if n]


def own_sizes(plan: Plan, recipe: Recipe, framing: Framing) -> tuple[Plan, Recipe]:
    """Give the samples the aspect of what they are drawn from: the image to edit, else a hint, else each its own mask.

    Only where no size is asked for, and the model was trained to keep aspects. A sample that is drawn from none of them
    has the size that most images of the training had: a square is one that such a model may hardly have seen.
    """
    recipe = replace(recipe, aspect=framing.rule)
    if recipe.sampling.size is not None or framing.rule != "bucket":
        return plan, recipe
    shown = [recipe.begin.init] if not isinstance(recipe.begin, FromNoise) else [each.hint for each in recipe.controls]
    if shown:
        return plan, recipe.at(framed(shown[0], framing).plain)
    unions = [union_of_masks(subject.masks) for subject in plan.subjects]
    usual = None if framing.usual is None else framing.usual.plain
    sizes = [usual if union is None else framing.frame(*union.size).plain for union in unions]
    subjects = [replace(subject, size=size) for subject, size in zip(plan.subjects, sizes, strict=True)]
    return replace(plan, subjects=tuple(subjects)), recipe
