"""The training image that a sample is nearest to: by pixels, by high-passed detail and by features.

    pixels    L2 of the 32x32 images, over the mean L2 to the 50 nearest: Carlini et al., arXiv 2301.13188, section 5
              (their factor alpha is left to the threshold), of images brought to mean 0 and deviation 1 against gain.
    detail    1 - the normalised cross-correlation of near_duplicates.py (Lewis 1995), at 48x48: the largest over all
              ways in which the sample may be a crop of the training image (to 90 % of each side by itself, to 70 % of
              both, as a scanner's zoom makes it), show it to another depth (of 70 to 140 %) or be a shift of it.
    features  L2 of the features of a network, standardised, over the mean to the 50 nearest, as for pixels.

All three are distances (small: near), and the smaller one of the sample and its mirror image counts. There is no
preselection of candidates: every alignment is one product of matrices of a batch with all training images. A training
image takes 13 kB and its features; on one core a sample takes 0.1 s against 554 of them.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.data.altered_copies import FLAT, unit
from ldm_us.data.altered_copies import SIDE as SIDE_OF_FAMILIES
from ldm_us.data.near_duplicates import BLUR, THRESHOLD, detail
from ldm_us.files.pictures import to_picture

SCORES = ("pixels", "detail", "features")
RATIOS = [0, 2]  # those of SCORES that are distances over the mean to the neighbours
PIXELS = 32  # side of the images whose pixels are compared, that of CIFAR-10 in the paper
NEIGHBOURS = 50  # n of the paper
SIDE = 48  # of the images whose detail is compared; the blur shrinks with it
REACH = 2  # pixels of SIDE that an uncropped sample may be shifted
CROPPED = (48, 46, 45, 43)  # sides, of SIDE, that a crop may have kept: to 90 %
ZOOMED = (41, 39, 37, 35, 33)  # of both sides, that a scanner's zoom may have kept: to 70 %, anywhere
DEPTHS = (*range(33, 47), *range(50, 70, 2))  # heights that another depth gives the image, from the same skin down

SEARCH = "crop, zoom and depth"  # in a report: thresholds of another search are too lenient for this one
AT_ONCE = 512  # training images

Encode = Callable[[Tensor], Tensor]  # images (b, 1, H, W) in [0, 1] -> features (b, d)
Shape = tuple[int, int, range, range]  # height and width of a shrunken or stretched sample, places down and across


class Alignment(NamedTuple):
    """How a sample may lie on a training image of SIDE x SIDE: shrunk to height x width, its corner at (top, left)."""

    height: int
    width: int
    top: int
    left: int

    def of_sample(self, details: Tensor) -> Tensor:
        """Cut from (b, height, width) what lies on the training image."""
        rows = slice(max(0, -self.top), self.height - max(0, self.top + self.height - SIDE))
        columns = slice(max(0, -self.left), self.width - max(0, self.left + self.width - SIDE))
        return details[..., rows, columns]

    def of_training(self, details: Tensor) -> Tensor:
        """Cut from (n, SIDE, SIDE) what the sample lies on."""
        rows = slice(max(0, self.top), min(SIDE, self.top + self.height))
        columns = slice(max(0, self.left), min(SIDE, self.left + self.width))
        return details[..., rows, columns]


class Described(NamedTuple):
    """What is kept of n images to compare others with."""

    pixels: Tensor  # (n, PIXELS^2), each of mean 0 and deviation 1
    details: Tensor  # (n, SIDE, SIDE)
    features: Tensor  # (n, d), each of mean 0 and deviation 1


class Nearest(NamedTuple):
    """For b images and each of SCORES: the score, and which training image is the nearest."""

    scores: Tensor  # (scores, b), small: near
    image: Tensor  # (scores, b) int64, of the training images
    distances: Tensor  # (scores, b), before those of RATIOS are divided


def describe(images: Iterable[Tensor], encode: Encode) -> Described:
    """Describe batches of images (b, 1, H, W) in [0, 1]; only the descriptions are kept."""
    parts = [(pixels_of(x), details_of(x, SIDE, SIDE), standardised(encode(x))) for x in images]
    return Described(*(torch.cat(column) for column in zip(*parts, strict=True)))


def nearest(x: Tensor, training: Described, encode: Encode, excluded: Tensor | None = None) -> Nearest:
    """Compare images (b, 1, H, W) in [0, 1] with all training images but those `excluded` (b, n) bool.

    `excluded` is for training images, with their families. Near-duplicates that these do not know, such as a second
    image at another depth, are left out with them: they would be what a copy is measured by.
    """
    views = (x, x.flip(-1))
    between = torch.stack(
        [
            torch.stack([l2(pixels_of(view), training.pixels) for view in views]).amin(dim=0),
            1 - detail_correlations(x, training.details),
            torch.stack([l2(standardised(encode(view)), training.features) for view in views]).amin(dim=0),
        ]
    )  # (scores, b, n)
    if excluded is not None:
        excluded = excluded | (between[SCORES.index("detail")] < 1 - THRESHOLD)
        between = between.masked_fill(excluded, float("inf"))
    distances, image = between.min(dim=2)
    scores = distances.clone()
    scores[RATIOS] = ratio_to_neighbours(between[RATIOS])
    return Nearest(scores, image, distances)


def ratio_to_neighbours(distance: Tensor) -> Tensor:
    """(..., n) -> (...): the smallest over the mean of the NEIGHBOURS smallest.   arXiv 2301.13188, section 5"""
    near = distance.topk(NEIGHBOURS, largest=False).values
    return near[..., 0] / near.mean(dim=-1).clamp_min(1e-12)


def l2(one: Tensor, other: Tensor) -> Tensor:
    """Root mean squared difference of every pair: (b, d), (n, d) -> (b, n)."""
    squared = one.pow(2).sum(dim=1)[:, None] + other.pow(2).sum(dim=1) - 2 * one @ other.T
    return (squared.clamp_min(0) / one.shape[1]).sqrt()


def standardised(values: Tensor) -> Tensor:
    """Flatten (b, ...) to (b, d), each of mean 0 and deviation 1, or all 0 where flat."""
    flat = unit(values)
    return flat * flat.shape[1] ** 0.5


def pixels_of(x: Tensor) -> Tensor:
    """Shrink images (b, 1, H, W) to (b, PIXELS^2), standardised."""
    return standardised(F.interpolate(x, (PIXELS, PIXELS), mode="bilinear", antialias=True))


def details_of(x: Tensor, height: int, width: int) -> Tensor:
    """High-pass images (b, 1, H, W) in [0, 1] at another size: (b, height, width)."""
    return torch.stack([detail(to_picture(image), height, width, BLUR * SIDE / SIDE_OF_FAMILIES) for image in x])


def detail_correlations(x: Tensor, training: Tensor) -> Tensor:
    """Correlate images (b, 1, H, W) with training details (n, SIDE, SIDE): the largest over all alignments, (b, n)."""
    best = [
        torch.stack([correlations.amax(dim=(0, 3, 4)) for _, correlations in aligned(x, part)]).amax(dim=0)
        for part in training.split(AT_ONCE)
    ]
    return torch.cat(best, dim=1)


def best_alignment(x: Tensor, training: Tensor) -> tuple[float, bool, Alignment]:
    """Find how one image (1, H, W) lies best on a training detail (SIDE, SIDE): correlation, mirrored or not, where."""
    found = []
    for (height, width, tops, lefts), correlations in aligned(x[None], training[None]):
        mirrored, _, _, i, j = np.unravel_index(int(correlations.argmax()), correlations.shape)
        found.append((float(correlations.max()), bool(mirrored), Alignment(height, width, tops[i], lefts[j])))
    return max(found, key=lambda one: one[0])


def aligned(x: Tensor, training: Tensor) -> Iterator[tuple[Shape, Tensor]]:
    """Lay images (b, 1, H, W) on training details (n, SIDE, SIDE) in every way; yield the ways and the correlations.

    They are (2, b, n, places down, places across): of the images as they are and mirrored.
    """
    for height, width, tops, lefts in shapes():
        details = details_of(x, height, width)
        views = torch.cat([details, details.flip(-1)])  # (b, height, width) -> (2b, height, width)
        if (tops, lefts) == (range(SIDE - height + 1), range(SIDE - width + 1)):
            correlations = correlated_inside(views, training)
        else:
            ways = [Alignment(height, width, top, left) for top, left in product(tops, lefts)]
            cuts = [unit(way.of_sample(views)) @ unit(way.of_training(training)).T for way in ways]  # (2b, n) each
            correlations = torch.stack(cuts, dim=-1).unflatten(-1, (len(tops), len(lefts)))
        yield (height, width, tops, lefts), correlations.unflatten(0, (2, len(x)))


def correlated_inside(views: Tensor, training: Tensor) -> Tensor:
    """Correlate (m, height, width) with (n, SIDE, SIDE) at every place inside: (m, n, places down, places across)."""
    height, width = views.shape[1:]
    products = F.conv2d(training[:, None], unit(views)[:, None].unflatten(2, (height, width)))
    sums, squares = (box_sums(power, height, width) for power in (training.double(), training.double() ** 2))
    norm = (squares - sums**2 / (height * width)).clamp_min(0).sqrt().float()[:, None]  # (n, 1, down, across)
    return (products / norm.clamp_min(FLAT) * (norm > FLAT)).transpose(0, 1)


def box_sums(values: Tensor, height: int, width: int) -> Tensor:
    """Sum (n, h, w) over every box of height x width: (n, places down, places across)."""
    up_to = F.pad(values, (1, 0, 1, 0)).cumsum(dim=1).cumsum(dim=2)
    rows = up_to[:, height:] - up_to[:, :-height]
    return rows[:, :, width:] - rows[:, :, :-width]


def shapes() -> Iterator[Shape]:
    """Height and width of the shrunken or stretched image, and where its corner may be: down and across."""
    for height, width in [*product(CROPPED, CROPPED), *((side, side) for side in ZOOMED)]:
        if height == width == SIDE:  # not cropped, but perhaps shifted
            yield height, width, range(-REACH, REACH + 1), range(-REACH, REACH + 1)
        else:
            yield height, width, range(SIDE - height + 1), range(SIDE - width + 1)
    for height in DEPTHS:
        yield height, SIDE, range(-1, 2), range(1)


def nearest_of_stream(
    images: Iterable[Tensor], training: Described, encode: Encode, excluded: Tensor | None = None
) -> Nearest:
    """Compare batches of images (b, 1, H, W), as `nearest` does; `excluded` (n of all batches, n of training) bool."""
    parts, start = [], 0
    for x in images:
        parts.append(nearest(x, training, encode, None if excluded is None else excluded[start : start + len(x)]))
        start += len(x)
    return Nearest(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))
