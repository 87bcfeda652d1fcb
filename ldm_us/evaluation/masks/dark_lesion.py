"""Find the dark lesion of a breast image without a trained network: the blob that stands out most from its rim.

The image is smoothed and cut at several grey levels; every connected dark region is a candidate (as in maximally
stable extremal regions, Matas et al. 2002). The one with the largest contrast to its rim wins, weighted by its size and
by how near it lies to where the lesions of breast images do, a little above the centre. It never sees the asked mask,
so a Dice against that mask is evidence. It is a rule, not a reader: its Dice on real images with their own masks says
how much it can find at all.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CUTS = torch.linspace(0.04, 0.50, 10)  # grey quantiles at which the image is cut
SMALLEST, LARGEST = 0.003, 0.45  # share of the image that a lesion may cover
SMOOTHING = 1 / 64  # sigma of the Gaussian, in image sides
RIM = 1 / 24  # width of the rim, in image sides
CENTRE, SPREAD = (0.42, 0.50), (0.22, 0.25)  # (down, across), in image sides: where lesions lie, chosen on BUSI


def dark_lesion(image: Tensor) -> Tensor:
    """(1, H, W) in [0, 1] -> (1, H, W) in {0, 1}, all zero where no region qualifies."""
    smooth = gaussian_blur(image[None], SMOOTHING * image.shape[-1])[0]
    cuts = torch.quantile(smooth.flatten(), CUTS.to(image))
    dark = (smooth < cuts.view(-1, 1, 1)).float()[:, None]  # (cuts, 1, H, W)
    labels = connected_regions(dark)

    best, best_score = torch.zeros_like(image), 0.0
    for label_map in labels:
        names, sizes = label_map[label_map > 0].unique(return_counts=True)
        fitting = (sizes >= SMALLEST * image.numel()) & (sizes <= LARGEST * image.numel())
        for name in names[fitting].tolist():
            region = (label_map == name).float()
            region_score = score(smooth, region)
            if region_score > best_score:
                best, best_score = region, region_score
    return fill_holes(best)


def score(smooth: Tensor, region: Tensor) -> float:
    """Mean grey of the rim minus that of the region, weighted by size and place."""
    width = max(1, round(RIM * region.shape[-1]))
    rim = F.max_pool2d(region[None], 2 * width + 1, stride=1, padding=width)[0] - region
    if rim.sum() == 0:
        return 0.0
    contrast = (smooth * rim).sum() / rim.sum() - (smooth * region).sum() / region.sum()
    side = bool(region[:, 0].any() or region[:, -1].any() or region[:, :, 0].any() or region[:, :, -1].any())
    offsets = [
        (float(where.float().mean()) / region.shape[-1] - centre) / spread
        for where, centre, spread in zip(region[0].nonzero(as_tuple=True), CENTRE, SPREAD, strict=True)
    ]
    nearness = math.exp(-0.5 * sum(offset**2 for offset in offsets))
    return float(contrast * (region.sum() / region.numel()) ** 0.25) * nearness * (0.5 if side else 1.0)


def connected_regions(binary: Tensor) -> Tensor:
    """(b, 1, H, W) in {0, 1} -> one positive label per 8-connected region of each image, 0 elsewhere."""
    h, w = binary.shape[-2:]
    labels = binary * torch.arange(1, h * w + 1, dtype=torch.float32).view(1, 1, h, w)  # exact up to 2^24 pixels
    while True:
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * binary
        if torch.equal(spread, labels):
            return labels
        labels = spread


def fill_holes(region: Tensor) -> Tensor:
    """(1, H, W): what the outside cannot reach without crossing the region belongs to it."""
    outside = F.pad(1 - region, (1, 1, 1, 1), value=1.0)[None]
    labels = connected_regions(outside)
    reached = (labels == labels[0, 0, 0, 0]) & (outside > 0)
    return 1.0 - reached[0, :, 1:-1, 1:-1].float()


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """(b, 1, H, W) -> the same, convolved with a Gaussian of `sigma` pixels; edges are repeated."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))
