"""Mask fidelity of samples that lie in folders beside their asked masks, and of real images beside their drawn ones.

A batch of pixels is in memory at a time, so a folder may hold any number of samples.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.data.framing import LEAST_AREA
from ldm_us.data.opening import open_image
from ldm_us.data.records import Record, load_mask
from ldm_us.evaluation.mask_errors import joined, mask_errors
from ldm_us.evaluation.masks.fidelity import FindLesions, load_batch
from ldm_us.evaluation.masks.figures import Column

OnImages = Callable[[int], object]  # told how many more images were measured


class Pairs(NamedTuple):
    """Images with masks."""

    lesions: list[Record]  # whose mask asks for a lesion
    empty: list[Record]  # whose mask is empty, or not there for a class without lesions


def side_of(records: Sequence[Record]) -> int:
    """Return the side in pixels of the squares that all generated images are measured on: their own, if they are such.

    Images of several aspects are resized whole. ValueError: their areas differ.
    """
    if not records:
        raise ValueError("--generated: no images in it. Give a folder with images.")
    sizes = sorted({open_image(record.image).size for record in records})
    areas = sorted(width * height for width, height in sizes)
    if areas[0] < LEAST_AREA * areas[-1]:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + ", ..." * (len(sizes) > 3)
        raise ValueError(f"--generated: images of {listed} pixels. Measure images of about one area at a time.")
    return round(math.sqrt(areas[-1]))


def with_and_without_lesion(records: Sequence[Record], size: int, option: str) -> Pairs:
    """Split records into those whose mask asks for a lesion and those without.

    Raise ValueError, naming the option, where a mask is missing or contradicts the class.
    """
    pairs = Pairs([], [])
    for record in records:
        if record.shows is not False and not record.masks:
            raise ValueError(
                f"{option}: {record.image} has no mask beside it. Give images with masks, such as those of "
                "sample.py --mask ... --layout busi."
            )
        asked = bool(load_mask(record.masks, size).any())
        if record.shows and not asked:
            raise ValueError(
                f"{option}: the mask of {record.image} is empty at {size}x{size} pixels, but its class is "
                f"{record.label}. Remove the image, or draw its lesion."
            )
        if record.shows is False and asked:
            raise ValueError(
                f"{option}: {record.image} is {record.label}, but its mask marks a lesion. Remove one of them."
            )
        (pairs.lesions if asked else pairs.empty).append(record)
    return pairs


def grouped_by_mask(records: Sequence[Record], size: int) -> list[Record]:
    """The same records, those that follow one mask in one group, wherever they lie."""
    return [
        replace(record, group=hashlib.sha256(load_mask(record.masks, size).numpy().tobytes()).hexdigest())
        for record in records
    ]


def find_in_batches(
    records: Sequence[Record], size: int, find: FindLesions, batch: int, on_images: OnImages
) -> Iterator[tuple[Tensor, Tensor]]:
    """What is found in the images and what their masks ask for, (b, 1, size, size) each, in order."""
    for i in range(0, len(records), batch):
        images, masks = load_batch(records[i : i + batch], size)
        yield find(images), masks
        on_images(len(images))


def measure_lesions(
    records: Sequence[Record], mask_of: Sequence[Record], found: Iterator[tuple[Tensor, Tensor]], size: int
) -> tuple[Column, Column]:
    """The errors of what is found in each record against its own mask, and against the mask of mask_of[i]."""
    own, others, rest = [], [], iter(mask_of)
    for lesions, masks in found:
        own.append(mask_errors(lesions, masks))
        other_masks = [load_mask(next(rest).masks, size) for _ in masks]
        others.append(mask_errors(lesions, torch.stack(other_masks)))
    labels, groups = [record.label for record in records], [record.group for record in records]
    return Column(joined(own), labels, groups), Column(joined(others), labels, groups)


def check_same_classes(generated: Sequence[Record], real: Sequence[Record]) -> None:
    """Raise ValueError where a class of the generated images has no real one to be its ceiling."""
    missing = sorted({record.label for record in generated} - {record.label for record in real})
    if missing:
        raise ValueError(
            f"--real: no {' and no '.join(missing)} image that the judge was not trained on, so nothing says how well "
            "it judges them. Add some, or leave this class out of --generated."
        )
