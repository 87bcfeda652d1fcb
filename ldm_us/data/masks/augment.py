"""Variations of a given mask: shifted, scaled, rotated, mirrored and bent, inside the image and in as many pieces."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_us.data.masks.sampler import Values, components

Levels = NDArray[Any]  # (h, w): bool, or uint8 sums of 2^k
ATTEMPTS = 8  # each with half of the change of the one before; then the mask stays as it is
CELLS = 4  # along each side, of the grid of random vectors that bends the mask


@dataclass(frozen=True)
class Augmentation:
    """Largest changes, each drawn evenly from minus to plus."""

    shift: float = 0.15  # share of the side, down and right
    scale: float = 0.3  # of the logarithm of the size
    rotate: float = 20.0  # degrees
    flip: bool = True  # left to right, every second time
    elastic: float = 0.03  # share of the side by which the mask is bent


def augment_mask(rng: np.random.Generator, mask: Levels, augmentation: Augmentation | None = None) -> Levels:
    """A variation of a mask (H, W), or of the sums of several structures. It loses nothing, and one lesion stays one.

    Where the drawn change would break that, half of it is tried, and so on. Raise ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("an empty mask has no lesion to move. Give a mask with a lesion.")
    augmentation = augmentation or Augmentation()
    mask = mask[:, ::-1] if augmentation.flip and rng.random() < 0.5 else mask
    change = rng.uniform(-1, 1, 4)
    bend = rng.uniform(-1, 1, (2, CELLS, CELLS))
    for attempt in range(ATTEMPTS):
        moved = move(mask, augmentation, change / 2**attempt, bend / 2**attempt)
        if moved is not None and pieces(moved) == pieces(mask):
            return moved
    return mask.copy()


def pieces(mask: Levels) -> list[int]:
    """How many a mask has; of several structures, how many each has."""
    return [len(components(mask >> k & 1 > 0)) for k in range(8)] if mask.dtype != bool else [len(components(mask))]


def move(mask: Levels, augmentation: Augmentation, change: Values, bend: Values) -> Levels | None:
    """Move a mask by change (4,), of -1 to 1, and bend it by vectors (2, cells, cells); None if it leaves the image.

    Every pixel of a canvas twice as large looks up, nearest, where it came from.
    """
    h, w = mask.shape
    rows, columns = np.meshgrid(np.arange(-h // 2, h + h // 2), np.arange(-w // 2, w + w // 2), indexing="ij")
    where = np.nonzero(mask)
    centre = where[0].mean(), where[1].mean()
    down = rows - centre[0] - augmentation.shift * change[0] * h
    right = columns - centre[1] - augmentation.shift * change[1] * w
    angle, size = np.deg2rad(augmentation.rotate * change[2]), np.exp(augmentation.scale * change[3])
    from_rows = (down * np.cos(angle) - right * np.sin(angle)) / size + centre[0]
    from_columns = (right * np.cos(angle) + down * np.sin(angle)) / size + centre[1]
    i = np.rint(from_rows + augmentation.elastic * h * smooth(bend[0], *rows.shape)).astype(int)
    j = np.rint(from_columns + augmentation.elastic * w * smooth(bend[1], *rows.shape)).astype(int)
    known = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    moved = known * mask[i.clip(0, h - 1), j.clip(0, w - 1)]
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    return None if (moved[~inside] > 0).any() else moved[inside].reshape(h, w)


def smooth(values: Values, h: int, w: int) -> Values:
    """A coarse grid of values as a smooth field (h, w)."""
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((w, h), Image.Resampling.BICUBIC), dtype=np.float64)
