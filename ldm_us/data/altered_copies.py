"""Find copies of images that were mirrored, turned or cropped: those a comparison of pixel with pixel cannot see.

Every way to alter an image is tried on coarse versions of all (24x24, high-passed): one product of matrices a way and
shift. The few pairs that correlate there are compared at 48x48, where zoom and angle are refined. Planted copies of
real images reach 0.75 and more, and other pairs of BUSI and BUS-BRA 0.55; bench/copies.py counts what is found.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 96  # pixels of a side of the compared images
COARSE, FINE = 24, 48  # of the versions here
INNER = 5 / 6  # of each side is compared: the rest may have left the copy
COARSE_BLUR = 5.0  # pixels of 96, standard deviation of the Gaussian that is subtracted
LIKELY_AS_IT_IS, LIKELY = 0.35, 0.6  # coarse correlation from which a pair is looked at, unaltered and altered
ALTERED = 0.72  # fine correlation above which a pair is one of copies
REACH = 6  # pixels of 96, largest shift down and across
BLOCK = 512  # images at a time
FEW = 64  # pairs at a time
FLAT = 1e-3  # an image whose detail has a smaller norm shows nothing to compare

EIGHT = [  # the square's own symmetries, as matrices of (x, y): as it is, mirrored; upside down, half and quarter turns
    *([[1, 0], [0, 1]], [[-1, 0], [0, 1]]),
    *([[1, 0], [0, -1]], [[-1, 0], [0, -1]], [[0, 1], [1, 0]], [[0, -1], [1, 0]], [[0, -1], [-1, 0]]),
]  # a quarter turn the other way is this one with both images exchanged


class Way(NamedTuple):
    """How one image was made from another."""

    symmetry: int  # of EIGHT
    across: float = 1.0  # zoom: above 1 is a crop of the sides; below, both images are exchanged
    down: float = 1.0  # of top and bottom
    angle: float = 0.0  # degrees


AS_IT_IS = Way(0)
SMALL = [
    *((1.0, 1.0, 5), (1.0, 1.0, 10), (1.1, 1.0, 0), (1.0, 1.1, 0), (1.2, 1.2, 0)),
    *((1.1, 1.1, angle) for angle in (-10, -5, 0, 5, 10)),
]
WAYS = [
    *(Way(symmetry, *small) for symmetry in (0, 1) for small in SMALL),
    *(Way(1, 1.0, 1.0, angle) for angle in (-10, -5, 0)),  # unmirrored, a turn back is one with both images exchanged
    *(Way(symmetry) for symmetry in range(2, len(EIGHT))),
]
REFINED = list(product((0.95, 0.975, 1.0, 1.025, 1.05), (0.95, 0.975, 1.0, 1.025, 1.05), (-2.5, 0.0, 2.5)))


class Coarse(NamedTuple):
    """What all ways compare: images high-passed with COARSE_BLUR, in two forms."""

    images: Tensor  # (n, 48, 48), to be altered
    insides: list[Tensor]  # (n, pixels) of 24x24: at shifts of up to a pixel
    aspects: Tensor  # (n,) width over height


def coarse(broad: Tensor, aspects: Tensor) -> Coarse:
    """Prepare images (n, 96, 96) of these widths over heights."""
    pixel = SIDE // COARSE
    insides = [inside_of(broad, *shift, COARSE) for shift in ((0, 0), (0, pixel), (0, -pixel), (pixel, 0), (-pixel, 0))]
    return Coarse(F.avg_pool2d(broad, SIDE // FINE), insides, aspects)


def likely_pairs(images: Coarse, way: Way) -> set[tuple[int, int]]:
    """Find the pairs (i, j) where image i, altered, may be j."""
    altered = unit(warp(images.images, images.aspects, way, COARSE))
    least = LIKELY_AS_IT_IS if way == AS_IT_IS else LIKELY
    found: set[tuple[int, int]] = set()
    for inside, i in product(images.insides, range(0, len(altered), BLOCK)):
        correlation = altered[i : i + BLOCK] @ inside.T  # (b, n)
        found.update((i + row, j) for row, j in (correlation > least).nonzero().tolist() if i + row != j)
    return found


def altered_pairs(
    details: Tensor, aspects: Tensor, way: Way, pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Keep the pairs (i, j) of images (n, 96, 96) that correlate above ALTERED at 48x48 after `way`, refined."""
    kept = []
    for start in range(0, len(pairs), FEW):
        block = pairs[start : start + FEW]
        i, j = torch.tensor(block).T
        one = F.avg_pool2d(details[i], SIDE // FINE)
        refined = [Way(way.symmetry, way.across * x, way.down * y, way.angle + more) for x, y, more in REFINED]
        altered = torch.stack([unit(warp(one, aspects[i], each, FINE)) for each in refined], dim=1)  # (b, ways, pixels)
        best = torch.zeros(len(block))
        for down in range(-REACH, REACH + 1):
            insides = torch.stack([inside_of(details[j], down, across) for across in range(-REACH, REACH + 1)], dim=2)
            best = torch.maximum(best, (altered @ insides).amax(dim=(1, 2)))
        kept += [pair for pair, correlation in zip(block, best.tolist(), strict=True) if correlation > ALTERED]
    return kept


def warp(images: Tensor, aspects: Tensor, way: Way, side: int) -> Tensor:
    """Alter square images (n, h, h) of these widths over heights, and cut the inside of (side, side): (n, m, m)."""
    cos, sin = math.cos(math.radians(way.angle)), math.sin(math.radians(way.angle))
    one = torch.ones_like(aspects)
    turn = torch.stack([cos * one, -sin / aspects, sin * aspects, cos * one], dim=1).view(-1, 2, 2)
    turn = turn / torch.tensor([way.across, way.down])  # of x, y
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    line = centres[margin(side) : side - margin(side)]
    points = torch.stack([line.expand(len(line), -1), line[:, None].expand(-1, len(line))], dim=-1)  # (m, m, 2): x, y
    grid = torch.einsum("nab,bc,yxc->nyxa", turn, torch.tensor(EIGHT[way.symmetry], dtype=torch.float32), points)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def inside_of(images: Tensor, down: int, across: int, side: int = FINE) -> Tensor:
    """Shift images (n, 96, 96), shrink them to (side, side) and cut their inside: (n, pixels) of mean 0 and norm 1."""
    moved = F.avg_pool2d(images.roll((-down, -across), dims=(1, 2)), SIDE // side)
    return unit(moved[:, margin(side) : side - margin(side), margin(side) : side - margin(side)])


def margin(side: int) -> int:
    """Pixels at each edge that are not compared."""
    return round(side * (1 - INNER) / 2)


def unit(cut: Tensor) -> Tensor:
    """Flatten (b, ...) to (b, pixels), each of mean 0 and norm 1, or all 0 where flat: products are correlations."""
    cut = cut.flatten(1)
    cut = cut - cut.mean(dim=1, keepdim=True)
    norm = cut.norm(dim=1, keepdim=True)
    return cut / norm.clamp_min(FLAT) * (norm > FLAT)
