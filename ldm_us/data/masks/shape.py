"""Masks as arrays (h, w): what is said of one, its outline, and the same shapes elsewhere or larger.

A mask is bool, or uint8 with the sum of 2^k over the structures k of each pixel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ldm_us.config import MASK
from ldm_us.data.records import mask_file
from ldm_us.data.regions import Mask, label_regions

COLOURS = (  # of structures: the first differ in lightness, too
    "#ffb000",
    "#648fff",
    "#dc267f",
    "#22b8a0",
    "#fe6100",
    "#9b7bff",
    "#8fce00",
    "#d9d9d9",
)
Sums = Mask | NDArray[np.uint8]


def mask_picture(mask: Sums, hint: tuple[str, ...] = MASK) -> Image.Image:
    """A mask as a file that is read as the same: white on black, or the labels of several structures."""
    return mask_file(torch.from_numpy(mask)[None], hint)


def canvas_picture(mask: Sums, count: int) -> Image.Image:
    """A mask as the canvas of a page tells it, 8-bit grey: white on black, or the sums of so many structures."""
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255 if count == 1 else 1))


def described(mask: Sums, labels: Sequence[str] = ("lesion",)) -> str:
    """Area and pieces of each structure, to stand beside the canvas."""
    said = []
    for k, label in enumerate(labels):
        part = mask.astype(np.uint8) >> k & 1 > 0
        if pieces := int(label_regions(part).max()):
            name = label[:1].upper() + label[1:]
            said.append(f"{name}: {100 * part.mean():.1f} % of the picture, {pieces} piece{'s' * (pieces > 1)}.")
    return " ".join(said) or f"No {' or '.join(labels)} drawn yet."


def outline(mask: Sums, grow: int = 4) -> Image.Image:
    """The edge of each structure as a line in its colour over a transparent picture, `grow` times as large."""
    height, width = (grow * side for side in mask.shape)
    rgba = np.zeros((height, width, 4), np.uint8)
    for k, colour in enumerate(COLOURS):
        part = mask.astype(np.uint8) >> k & 1
        if not part.any():
            continue
        large = np.kron(part, np.ones((grow, grow), np.uint8)) > 0
        padded = np.pad(large, 2)
        shifted = [np.roll(padded, (i, j), (0, 1)) for i in (-2, 0, 2) for j in (-2, 0, 2)]
        edge = (np.any(shifted, axis=0) & ~np.all(shifted, axis=0))[2:-2, 2:-2]
        rgba[edge] = [*bytes.fromhex(colour[1:]), 255]
    return Image.fromarray(rgba)


def moved(mask: Sums, right: float, down: float, factor: float) -> Sums:
    """What is drawn, moved by shares of the picture and grown about its own centre; what leaves the picture is cut."""
    h, w = mask.shape
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask
    y_0, x_0 = rows.mean(), columns.mean()
    y, x = np.mgrid[:h, :w]
    source_y = np.rint((y - y_0 - down * h) / factor + y_0).astype(int)
    source_x = np.rint((x - x_0 - right * w) / factor + x_0).astype(int)
    inside = (source_y >= 0) & (source_y < h) & (source_x >= 0) & (source_x < w)
    return mask[source_y.clip(0, h - 1), source_x.clip(0, w - 1)] * inside
