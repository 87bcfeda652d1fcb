"""Find copies of images that were mirrored, turned or cropped: those a comparison of pixel with pixel cannot see.

Every way to alter an image is tried on coarse versions of all (24x24, high-passed): one product of matrices a way and
shift, of less than half of the numbers, which bounds the correlation from above. The few pairs that correlate there are
compared at 48x48, where zoom and angle are refined. Planted copies of real images reach 0.75 and more, and other pairs
of BUSI and BUS-BRA 0.55; bench/copies.py counts what is found.
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
COLUMNS = 4096  # images that a block of them is compared with at a time
ENERGY = 0.9  # of the coarse images that their axes hold: of BUSI and BUS-BRA 165 axes instead of 400 pixels
SLACK = 0.01  # for the rounding of bounds, on a GPU too
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
    """What all ways compare: images high-passed with COARSE_BLUR, in two forms; and what bounds their products."""

    images: Tensor  # (n, 48, 48), to be altered
    insides: list[Tensor]  # (n, pixels) of 24x24: at shifts of up to a pixel
    aspects: Tensor  # (n,) width over height
    axes: Tensor  # (pixels, k), in which most of the insides lies
    bounds: list[Tensor]  # (n, k + 1) of insides


def coarse(broad: Sequence[Tensor], aspects: Tensor, device: str = "cpu") -> Coarse:
    """Prepare images (96, 96) of these widths over heights."""
    pixel = SIDE // COARSE
    shifts = ((0, 0), (0, pixel), (0, -pixel), (pixel, 0), (-pixel, 0))
    blocks = [torch.stack(list(broad[i : i + BLOCK])) for i in range(0, len(broad), BLOCK)]
    insides = [torch.cat([inside_of(block, *shift, COARSE) for block in blocks]).to(device) for shift in shifts]
    energy, axes = torch.linalg.eigh(insides[0].T @ insides[0])  # the smallest first
    axes = axes[:, energy.cumsum(0) > (1 - ENERGY) * energy.sum()]
    images = torch.cat([F.avg_pool2d(block, SIDE // FINE) for block in blocks]).to(device)
    return Coarse(images, insides, aspects.to(device), axes, [bounding(inside, axes) for inside in insides])


def bounding(cut: Tensor, axes: Tensor) -> Tensor:
    """(n, pixels) -> (n, k + 1), of which the product of two is at least that of the two cuts.

    a b = (a along the axes)(b along the axes) + (rest of a)(rest of b), where by Cauchy and Schwarz the last product is
    at most that of the norms of the rests.
    """
    along = cut @ axes
    rest = cut.square().sum(dim=1, keepdim=True) - along.square().sum(dim=1, keepdim=True)
    return torch.cat([along, rest.clamp_min(0).sqrt()], dim=1)


def likely_pairs(images: Coarse, way: Way, slack: float = 0.0) -> set[tuple[int, int]]:
    """Find the pairs (i, j) where image i, altered, may be j; slack is taken off the threshold."""
    altered = unit(warp(images.images, images.aspects, way, COARSE))
    least = (LIKELY_AS_IT_IS if way == AS_IT_IS else LIKELY) - slack
    bound = bounding(altered, images.axes)
    found: set[tuple[int, int]] = set()
    starts = product(range(0, len(altered), BLOCK), range(0, len(altered), COLUMNS))
    for (down, across), (inside, other) in product(starts, list(zip(images.insides, images.bounds, strict=True))):
        most = bound[down : down + BLOCK] @ other[across : across + COLUMNS].T
        most.diagonal(down - across).zero_()  # an image is no copy of itself
        rows = (most.amax(dim=1) > least - SLACK).nonzero()[:, 0] + down  # few: the plain product is of these alone
        i, j = (altered[rows] @ inside[across : across + COLUMNS].T > least).nonzero().T
        found.update(pair for pair in zip(rows[i].tolist(), (j + across).tolist(), strict=True) if pair[0] != pair[1])
    return found


def altered_pairs(
    details: Tensor, aspects: Tensor, way: Way, pairs: Sequence[tuple[int, int]], slack: float = 0.0
) -> list[tuple[int, int]]:
    """Keep pairs (i, j) of images (n, 96, 96) that correlate above ALTERED - slack at 48x48 after `way`, refined."""
    kept, device = [], aspects.device
    for start in range(0, len(pairs), FEW):
        block = pairs[start : start + FEW]
        i, j = torch.tensor(block).T
        one, other = F.avg_pool2d(details[i].to(device), SIDE // FINE), details[j].to(device)
        refined = [Way(way.symmetry, way.across * x, way.down * y, way.angle + more) for x, y, more in REFINED]
        altered = torch.stack(
            [unit(warp(one, aspects[i.to(device)], each, FINE)) for each in refined], dim=1
        )  # (b, ways, pixels)
        best = torch.zeros(len(block), device=device)
        for down in range(-REACH, REACH + 1):
            insides = torch.stack([inside_of(other, down, across) for across in range(-REACH, REACH + 1)], dim=2)
            best = torch.maximum(best, (altered @ insides).amax(dim=(1, 2)))
        kept += [pair for pair, correlation in zip(block, best.tolist(), strict=True) if correlation > ALTERED - slack]
    return kept


def warp(images: Tensor, aspects: Tensor, way: Way, side: int) -> Tensor:
    """Alter square images (n, h, h) of these widths over heights, and cut the inside of (side, side): (n, m, m)."""
    cos, sin = math.cos(math.radians(way.angle)), math.sin(math.radians(way.angle))
    one = torch.ones_like(aspects)
    turn = torch.stack([cos * one, -sin / aspects, sin * aspects, cos * one], dim=1).view(-1, 2, 2)
    turn = turn / torch.tensor([way.across, way.down], device=aspects.device)  # of x, y
    centres = (torch.arange(side, device=aspects.device) + 0.5) / side * 2 - 1
    line = centres[margin(side) : side - margin(side)]
    points = torch.stack([line.expand(len(line), -1), line[:, None].expand(-1, len(line))], dim=-1)  # (m, m, 2): x, y
    symmetry = torch.tensor(EIGHT[way.symmetry], dtype=torch.float32, device=aspects.device)
    grid = torch.einsum("nab,bc,yxc->nyxa", turn, symmetry, points)
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
