"""Which pixels of a mask file are lesion: one rule for all that read masks.

A mask has two levels, but for soft edges and the noise of JPEG; the level of a pixel is its brightest channel. What is
doubtful is refused by name: whoever knows what such levels mean has `python -m ldm_us.data binarize` say it once.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_us.data.regions import SPECK, Mask, label_regions

Levels = NDArray[np.uint8]

NOISE = 40  # grey levels around black and white; JPEG at quality 30 and ringing after a resize stay within it
GREYS = 0.25  # share of pixels off both levels; masks have less unless blurred by their own size, ultrasound has .36
OFF = 8  # grey levels, of such a pixel
FEW = 20  # levels, as of classes
LOSSY = ("AVIF", "JPEG", "MPO", "WEBP")  # write what they like under transparency, and 1 beside 0
BINARIZE = "Save it as black (0) and white (255), or have `python -m ldm_us.data binarize` do it."


def drawn_lesion(picture: Image.Image, path: Path) -> Mask:
    """The pixels of a decoded mask that are lesion: above 127, seen over black. ValueError: what cannot be decided."""
    lossy = picture.format in LOSSY
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        level = np.asarray(picture.convert("L"))
    else:
        level = without_alpha(np.asarray(picture.convert("RGBA")), path, lossy)
    problem = doubt_of_levels(level, lossy)
    if problem:
        raise ValueError(f"{path} {problem} {BINARIZE}")
    return level > 127


def without_alpha(rgba: Levels, path: Path, lossy: bool) -> Levels:
    """The levels that a mask shows over black, (h, w, 4) -> (h, w). A constant alpha is ignored.

    One dark colour over a transparent rest is a shape drawn in that colour: it becomes white.
    """
    level, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
    if alpha.min() == alpha.max():
        return level
    hidden, shown = level[alpha == 0] > 127, level[alpha > 127]
    if hidden.any() and not hidden.all() and not lossy:
        raise ValueError(f"{path} has one shape in its colours and another one in its transparency. {BINARIZE}")
    if (shown > 127).any():
        return np.rint(level * (alpha / 255)).astype(np.uint8)
    if looks_inverted(alpha > 127) or (shown.size and np.ptp(shown) > OFF):
        raise ValueError(f"{path} is dark where it is opaque, so its lesion may be that or the rest. {BINARIZE}")
    return alpha


def doubt_of_levels(level: Levels, lossy: bool = False) -> str:
    """Say what keeps the levels (h, w) of a mask from being two; empty where they are."""
    counts = np.bincount(level.ravel(), minlength=256)
    found = [str(one) for one in sorted(np.argsort(-counts, kind="stable")[:4]) if counts[one]]
    named = f"(levels such as {', '.join(found)})"
    if 0 < level.max() <= 127:
        return f"is not empty, but its brightest pixel is {level.max()} and only pixels above 127 count."
    every = np.arange(256)
    from_dark = np.abs(every - np.argmax(counts[:128]))
    from_bright = np.abs(every - 128 - np.argmax(counts[128:]))
    off = counts[(from_dark > OFF) & (from_bright > OFF)]
    if off.sum() > GREYS * level.size and np.count_nonzero(off) > FEW:
        return f"has many greys {named}, as a photograph has and a mask has not."
    between = (from_dark > NOISE) & (from_bright > NOISE)
    almost_dark = (from_dark > 0) & (from_dark <= NOISE) & (not lossy)  # such as class 1 within a border of 255
    if counts[between | almost_dark].any():
        of_areas = np.bincount(level[flat(level)], minlength=256)
        if of_areas[between].sum() > SPECK or of_areas[almost_dark].sum() > max(SPECK, counts[almost_dark].sum() / 2):
            return f"has more than two levels {named}, and what they mean is not known."
    if counts[(from_dark > NOISE) & (every <= 127)].any():
        drawn = label_regions(from_dark[level] > NOISE)
        dropped = np.setdiff1d(drawn[drawn > 0], drawn[level > 127])
        if dropped.size and np.bincount(drawn.ravel())[dropped].max() > SPECK:
            return f"has something drawn that is too dark to count {named}: only pixels above 127 do."
    return ""


def flat(level: Levels) -> Mask:
    """The pixels (h, w) whose eight neighbours have the same level."""
    padded = np.pad(level, 1, mode="edge")
    rows = [padded[i : i + len(level)] for i in range(3)]
    low, high = np.min(rows, axis=0), np.max(rows, axis=0)
    width = level.shape[1]
    return np.all([(low[:, j : j + width] == level) & (high[:, j : j + width] == level) for j in range(3)], axis=0)


def looks_inverted(union: Image.Image | Mask) -> bool:
    """Say whether a mask is white in most of the picture and in all four corners, as one drawn black on white is."""
    white = np.asarray(union) > 0
    return bool(white.mean() > 0.5 and white[[0, 0, -1, -1], [0, -1, 0, -1]].all())
