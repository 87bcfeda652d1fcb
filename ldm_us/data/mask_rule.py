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
Counts = NDArray[np.int64]  # (256,)

NOISE = 40  # grey levels around black and white; JPEG at quality 30 and ringing after a resize stay within it
GREYS = 0.25  # share of pixels off both levels; masks have less unless blurred by their own size, ultrasound has .36
OFF = 8  # grey levels, of such a pixel
FEW = 20  # levels, as of classes
LOSSY = ("AVIF", "JPEG", "MPO", "WEBP")  # write what they like under transparency, and 1 beside 0
BINARIZE = "Save it as black (0) and white (255), or have `python -m ldm_us.data binarize --lesion LEVELS` do it."


def drawn_lesion(picture: Image.Image, path: Path) -> Mask:
    """The pixels of a decoded mask that are lesion: above 127, seen over black. ValueError: what cannot be decided."""
    lossy = picture.format in LOSSY
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        level = np.asarray(picture.convert("L"))
    else:
        level = without_alpha(np.asarray(picture.convert("RGBA")), path, lossy)
    problem = doubt_of_levels(level, lossy)
    if problem:
        raise ValueError(f"{path} {problem}")
    return level > 127


def without_alpha(rgba: Levels, path: Path, lossy: bool) -> Levels:
    """The levels that a mask shows over black, (h, w, 4) -> (h, w). A constant alpha is ignored.

    The largest alpha counts as opaque: an overlay that was drawn half transparent is a shape as any other.
    One dark colour over a transparent rest is a shape drawn in that colour: it becomes white.
    """
    level, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
    if alpha.min() == alpha.max():
        return level
    alpha = np.rint(alpha * (255 / alpha.max())).astype(np.uint8)
    hidden, shown = level[alpha == 0] > 127, level[alpha > 127]
    if hidden.any() and not hidden.all() and not lossy:
        raise ValueError(f"{path} has one shape in its colours and another one in its transparency. {BINARIZE}")
    if (shown > 127).any():
        return np.rint(level * (alpha / 255)).astype(np.uint8)
    if looks_inverted(alpha > 127) or (shown.size and np.ptp(shown) > OFF):
        raise ValueError(f"{path} is dark where it is opaque, so its lesion may be that or the rest. {BINARIZE}")
    return alpha


def doubt_of_levels(level: Levels, lossy: bool = False) -> str:
    """Say what keeps the levels (h, w) of a mask from being two, and the way round; empty where they are."""
    counts = np.bincount(level.ravel(), minlength=256)
    found = [str(one) for one in sorted(np.argsort(-counts, kind="stable")[:4]) if counts[one]]
    named = f"(levels such as {', '.join(found)})"
    if 0 < level.max() <= 127:
        return f"is not empty, but its brightest pixel is {level.max()} and only pixels above 127 count. {BINARIZE}"
    if many_greys(counts):
        return f"has many greys {named}, as a photograph has and a mask has not. Give the mask that was drawn on it."
    if third_level(level, counts, lossy):
        return f"has more than two levels {named}, and what they mean is not known. {BINARIZE}"
    if dark_drawing(level, counts):
        return f"has something drawn that is too dark to count {named}: only pixels above 127 do. {BINARIZE}"
    return ""


def from_main_levels(counts: Counts) -> tuple[Counts, Counts]:
    """How far each level is from the most frequent dark one, and from the most frequent bright one."""
    every = np.arange(256)
    return np.abs(every - np.argmax(counts[:128])), np.abs(every - 128 - np.argmax(counts[128:]))


def many_greys(counts: Counts) -> bool:
    """Say whether many pixels have many levels off the two main ones, as in a photograph."""
    from_dark, from_bright = from_main_levels(counts)
    off = counts[(from_dark > OFF) & (from_bright > OFF)]
    return bool(off.sum() > GREYS * counts.sum() and np.count_nonzero(off) > FEW)


def third_level(level: Levels, counts: Counts, lossy: bool) -> bool:
    """Say whether there are areas of a level that is neither main one, nor the soft edge or the noise of one."""
    from_dark, from_bright = from_main_levels(counts)
    between = (from_dark > NOISE) & (from_bright > NOISE)
    almost_dark = (from_dark > 0) & (from_dark <= NOISE) & (not lossy)  # such as class 1 within a border of 255
    if not counts[between | almost_dark].any():
        return False
    of_areas = np.bincount(level[flat(level)], minlength=256)
    most = max(SPECK, counts[almost_dark].sum() / 2)
    return bool(of_areas[between].sum() > SPECK or of_areas[almost_dark].sum() > most)


def dark_drawing(level: Levels, counts: Counts) -> bool:
    """Say whether something is drawn of which no pixel is above 127; a speck is a slip of the pen."""
    drawn_dark = from_main_levels(counts)[0] > NOISE
    if not counts[:128][drawn_dark[:128]].any():
        return False
    drawn = label_regions(drawn_dark[level])
    dropped = np.setdiff1d(drawn[drawn > 0], drawn[level > 127])
    return bool(dropped.size and np.bincount(drawn.ravel())[dropped].max() > SPECK)


def flat(level: Levels) -> Mask:
    """The pixels (h, w) whose eight neighbours have the same level."""
    padded = np.pad(level, 1, mode="edge")
    rows = [padded[i : i + len(level)] for i in range(3)]
    low, high = np.min(rows, axis=0), np.max(rows, axis=0)
    width = level.shape[1]
    return np.all([(low[:, j : j + width] == level) & (high[:, j : j + width] == level) for j in range(3)], axis=0)


def looks_inverted(union: Image.Image | Mask) -> bool:
    """Say whether a mask is white in most of the picture and in all four corners, as one drawn black on white is.

    A picture to follow (mode I) is no mask.
    """
    if isinstance(union, Image.Image) and union.mode == "I":
        return False
    white = np.asarray(union) > 0
    return bool(white.mean() > 0.5 and white[[0, 0, -1, -1], [0, -1, 0, -1]].all())
