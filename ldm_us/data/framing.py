"""Sizes (height, width), and the ways to bring a picture and its mask into one that a model can take.

To squash a picture that is no square changes what it shows: a lesion that lies stands up, and speckle has other widths.
So sizes come in buckets of about one area and of several aspects, and a picture goes into the nearest: SDXL, appendix I
(arXiv 2307.01952), as many trainers do it. No bucket is larger than the model's square, so that none takes more memory.
Nothing here waits for PyTorch.
"""

import math
from functools import lru_cache
from typing import NamedTuple

KEPT = "kept"  # the rule of an evaluation: the picture's own aspect, to the pixel
LEAST_AREA = 0.75  # of a bucket, as a share of the square's
LONGEST = 2.0  # longer side over shorter one of a bucket
MOST_STRETCH = 1.1  # by how much a bucket may change the aspect of a picture; beyond that there are black bars

Size = int | tuple[int, int] | tuple[int, int, str]  # the side of a square; height and width; a Frame


class Frame(NamedTuple):
    """A size in pixels, and how a picture of another aspect is fitted into it: resized whole unless told."""

    height: int
    width: int
    fit: str = "squash"  # "letterbox": whole, with black bars; "crop": its middle, as much as fills the size

    def __str__(self) -> str:
        """As users write a size: width first."""
        return f"{self.width}x{self.height}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width alone."""
        return self.height, self.width

    @property
    def plain(self) -> int | tuple[int, int]:
        """The side of a square, else height and width: as a Sampling and a command line have it."""
        return self.height if self.height == self.width else self.size


class Placed(NamedTuple):
    """Where a picture goes: the part of it that is shown, and the place of that part in a Frame, in pixels."""

    part: tuple[int, int, int, int]  # left, top, right, bottom, as Pillow has boxes
    place: tuple[int, int, int, int]


class Framing(NamedTuple):
    """How the pictures of a run or of an evaluation get their sizes."""

    side: int  # of the model's square
    rule: str = "squash"  # of config.ASPECTS, or KEPT
    multiple: int = 1  # pixels that a height and a width must be multiples of
    usual: Frame | None = None  # the size that most pictures of a training had, where it kept aspects and says so

    def frame(self, width: int, height: int) -> Frame:
        """The size of a picture of this size, and how it gets there."""
        if self.rule == KEPT:
            root = math.sqrt(height / width)
            return Frame(max(1, round(self.side * root)), max(1, round(self.side / root)))
        return fit_by(self.rule, nearest_size(height, width, self.sizes), width, height)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Every size that a picture can get, where they are few."""
        return bucket_sizes(self.side, self.multiple) if self.rule == "bucket" else ((self.side, self.side),)


@lru_cache
def bucket_sizes(side: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """The buckets (height, width) of a model for squares of this side, from the widest to the tallest.

    Multiples of `multiple`, LEAST_AREA to all of the square's area, from 1:2 to 2:1, and the largest of each aspect: of
    these as few as leave no gap that MOST_STRETCH to both sides does not bridge, where the multiples allow it.
    """
    sides = range(multiple, int(side * math.sqrt(LONGEST)) + 1, multiple)
    tall: dict[float, tuple[int, int]] = {}
    for height in sides:  # rising, so that of one aspect the last is the largest
        for width in sides:
            if width < height <= LONGEST * width and LEAST_AREA * side**2 <= height * width <= side**2:
                tall[height / width] = height, width
    chosen, left = [1.0], sorted(tall)
    while left:
        reached = [aspect for aspect in left if aspect <= chosen[-1] * MOST_STRETCH**2]
        chosen.append(reached[-1] if reached else left[0])
        left = [aspect for aspect in left if aspect > chosen[-1]]
    upright = [tall[aspect] for aspect in chosen[1:]]
    return (*((width, height) for height, width in reversed(upright)), (side, side), *upright)


def nearest_size(height: int, width: int, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size whose aspect is nearest, by the logarithm; of two as near, the one that is nearer to a square."""
    return min(sizes, key=lambda size: (round(math.log(stretch(height, width, size)), 9), abs(size[0] - size[1])))


def stretch(height: int, width: int, size: tuple[int, int]) -> float:
    """By how much it changes the aspect of a picture to be resized whole to a size: 1 or more."""
    ratio = (height * size[1]) / (width * size[0])
    return max(ratio, 1 / ratio)


def fit_by(rule: str, size: Size, width: int, height: int) -> Frame:
    """A size with the fit of a rule for a picture: in a bucket whole, with bars where it would be stretched too far."""
    frame = as_frame(size)
    if rule == "bucket":
        return frame._replace(fit="letterbox" if stretch(height, width, frame.size) > MOST_STRETCH else "squash")
    return frame._replace(fit=rule)


def as_frame(size: Size) -> Frame:
    """A side, or a height and a width, as a Frame. Raise ValueError for a size below 1."""
    frame = Frame(size, size) if isinstance(size, int) else Frame(*size)
    if min(frame.size) < 1:
        raise ValueError(f"Image size {frame}: must be at least 1 pixel. Use the size of the model's preset.")
    return frame


def placed(frame: Frame, width: int, height: int) -> Placed:
    """Where a picture of this size goes in a Frame; the same for an image and its mask."""
    whole = (0, 0, width, height)
    if frame.fit == "letterbox":
        scale = min(frame.width / width, frame.height / height)
        across, down = (max(1, round(scale * side)) for side in (width, height))
        left, top = (frame.width - across) // 2, (frame.height - down) // 2
        return Placed(whole, (left, top, left + across, top + down))
    if frame.fit == "crop":
        scale = max(frame.width / width, frame.height / height)
        across, down = min(width, round(frame.width / scale)), min(height, round(frame.height / scale))
        left, top = (width - across) // 2, (height - down) // 2
        return Placed((left, top, left + across, top + down), (0, 0, *frame.size[::-1]))
    return Placed(whole, (0, 0, *frame.size[::-1]))


def parse_size(text: str) -> int | tuple[int, int]:
    """512, or 640x448: width and height, as users write them -> the side, or (height, width)."""
    words = text.lower().split("x")
    if not (1 <= len(words) <= 2 and all(word.isascii() and word.isdecimal() for word in words)):
        raise ValueError(f"{text!r} is no size. Give the side of a square in pixels, or WIDTHxHEIGHT, such as 640x448.")
    return Frame(int(words[-1]), int(words[0])).plain
