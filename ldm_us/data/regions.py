"""The connected regions of a mask: none is lost when it is resized, and outlines are filled."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_us.data.framing import Size, as_frame, placed

Mask = NDArray[np.bool_]  # (h, w)

SPECK = 4  # pixels; a region no larger beside a larger one is a slip of the pen: eight of BUSI's masks have such


def label_regions(mask: Mask, corners: bool = True) -> NDArray[np.int32]:
    """Number the connected regions from 1, from the top down; 0 outside: (h, w) -> (h, w). Do corners connect?"""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)  # runs of pixels, in the order of reading
    ends = np.nonzero(steps == -1)[1]
    width = mask.shape[1] + 2
    below = (rows + 1) * width  # runs of the row below that end after this one starts and start before it ends
    first = np.searchsorted(rows * width + ends, below + starts, "left" if corners else "right")
    last = np.searchsorted(rows * width + starts, below + ends, "right" if corners else "left")
    region = list(range(len(rows)))
    for run, touching in enumerate(map(range, first, last)):
        for other in touching:
            roots = _first_run(region, run), _first_run(region, other)
            region[max(roots)] = min(roots)
    _, numbers = np.unique([_first_run(region, run) for run in region], return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(numbers + 1, ends - starts)
    return labels


def _first_run(region: list[int], run: int) -> int:
    while region[run] != run:
        region[run] = run = region[region[run]]
    return run


def lost_regions(labels: NDArray[np.int32], size: Size) -> list[int]:
    """Name the regions of which no pixel is left at a size, each from the nearest pixel; specks do not count.

    What a Frame cuts off is no region of it.
    """
    labels, height, width, _ = shown_part(labels, size)
    pixels = np.bincount(labels.ravel())
    pixels[0] = 0
    gone = np.setdiff1d(np.nonzero(pixels)[0], nearest_pixels(labels, (height, width)))
    return [int(region) for region in gone if pixels[region] > min(SPECK, pixels.max() - 1)]


def resize_mask(mask: Mask, size: Size, keep_small: bool = True) -> Mask:
    """Bring into a size: each pixel from the nearest one, and a lost region as the pixel it falls on."""
    mask, height, width, bars = shown_part(mask, size)
    labels = label_regions(mask)
    resized = nearest_pixels(labels, (height, width)) > 0
    for region in lost_regions(labels, (height, width)) if keep_small else []:
        rows, columns = np.nonzero(labels == region)
        middle = len(rows) // 2
        resized[rows[middle] * height // mask.shape[0], columns[middle] * width // mask.shape[1]] = True
    return np.pad(resized, bars) if any(map(any, bars)) else resized


def shown_part(values: NDArray[Any], size: Size) -> tuple[NDArray[Any], int, int, list[tuple[int, int]]]:
    """The part of (h, w) that a size shows, the height and width that it gets there, and the bars around it."""
    frame = as_frame(size)
    (left, top, right, bottom), place = placed(frame, values.shape[1], values.shape[0])
    bars = [(place[1], frame.height - place[3]), (place[0], frame.width - place[2])]
    return values[top:bottom, left:right], place[3] - place[1], place[2] - place[0], bars


def share_cut_off(mask: Mask, size: Size) -> float:
    """The share of a mask's pixels that lie outside of what a size shows; 0 for an empty mask."""
    whole = int(mask.sum())
    return 1 - int(shown_part(mask, size)[0].sum()) / whole if whole else 0.0


def height_over_width(mask: Mask) -> float:
    """Of the largest region's bounding box, in pixels: above 1 a lesion is taller than wide; NaN for an empty mask."""
    labels = label_regions(mask)
    if not labels.any():
        return math.nan
    rows, columns = np.nonzero(labels == np.bincount(labels[mask]).argmax())
    return float((np.ptp(rows) + 1) / (np.ptp(columns) + 1))


def fill_outlines(mask: Mask) -> Mask:
    """Fill what an outline closes in: all that is not joined to the edge of the picture by the sides of pixels."""
    outside = label_regions(np.pad(~mask, 1, constant_values=True), corners=False)
    return (outside != outside[0, 0])[1:-1, 1:-1]


def nearest_pixels(values: NDArray[np.int32], size: Size) -> NDArray[np.int32]:
    """Resize (h, w) whole to a size, each pixel from the nearest one."""
    frame = as_frame(size)
    return np.asarray(Image.fromarray(values).resize((frame.width, frame.height), Image.Resampling.NEAREST))
