"""Masks as arrays (h, w): what is said of one, its outline, and the same lesion elsewhere or larger."""

import numpy as np
from PIL import Image

from ldm_us.data.regions import Mask, label_regions

LINE = (255, 176, 0, 255)  # of an outline


def mask_picture(mask: Mask) -> Image.Image:
    """White on black, 8-bit grey."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def described(mask: Mask, label: str = "lesion") -> str:
    """Area and pieces, to stand beside the canvas."""
    pieces = int(label_regions(mask).max())
    if not pieces:
        return f"No {label} drawn yet."
    return f"{label.capitalize()}: {100 * mask.mean():.1f} % of the picture, {pieces} piece{'s' * (pieces > 1)}."


def outline(mask: Mask, grow: int = 4) -> Image.Image:
    """The edge of a mask as a line over a transparent picture, `grow` times as large."""
    large = np.kron(mask, np.ones((grow, grow), bool))
    padded = np.pad(large, 2)
    shifted = [np.roll(padded, (i, j), (0, 1)) for i in (-2, 0, 2) for j in (-2, 0, 2)]
    edge = (np.any(shifted, axis=0) & ~np.all(shifted, axis=0))[2:-2, 2:-2]
    rgba = np.zeros((*edge.shape, 4), np.uint8)
    rgba[edge] = LINE
    return Image.fromarray(rgba)


def moved(mask: Mask, right: float, down: float, factor: float) -> Mask:
    """A lesion moved by shares of the picture and grown about its own centre; what leaves the picture is cut."""
    h, w = mask.shape
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask
    y_0, x_0 = rows.mean(), columns.mean()
    y, x = np.mgrid[:h, :w]
    source_y = np.rint((y - y_0 - down * h) / factor + y_0).astype(int)
    source_x = np.rint((x - x_0 - right * w) / factor + x_0).astype(int)
    inside = (source_y >= 0) & (source_y < h) & (source_x >= 0) & (source_x < w)
    return inside & mask[source_y.clip(0, h - 1), source_x.clip(0, w - 1)]
