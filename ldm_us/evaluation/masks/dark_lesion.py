"""Find the dark lesion of a breast image without a trained network: the blob that stands out most from its rim.

The image is smoothed and cut at several grey levels; every connected dark region is a candidate (as in maximally
stable extremal regions, Matas et al. 2002). The one with the largest contrast to its rim wins, weighted by its size and
by how near it lies to where the lesions of breast images do, a little above the centre. It never sees the asked mask,
so a Dice against that mask is evidence. It is a rule, not a reader: its Dice on real images with their own masks says
how much it can find at all.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ldm_us.evaluation.judge.training import gaussian_blur
from ldm_us.runtime.checks import check_extra

CUTS = torch.linspace(0.04, 0.50, 10)  # grey quantiles at which the image is cut
SMALLEST, LARGEST = 0.003, 0.45  # share of the image that a lesion may cover
SMOOTHING = 1 / 64  # sigma of the Gaussian, in image sides
RIM = 1 / 24  # width of the rim, in image sides
CENTRE, SPREAD = (0.42, 0.50), (0.22, 0.25)  # (down, across), in image sides: where lesions lie, chosen on BUSI
ALL_8 = np.ones((3, 3), bool)  # the neighbours of a pixel, those at its corners too


def dark_lesions(images: Tensor) -> Tensor:
    """The dark lesion of every image: (n, 1, H, W) in [0, 1] -> (n, 1, H, W) in {0, 1}."""
    check_extra("eval", "scipy")
    return torch.stack([dark_lesion(image) for image in images])


def dark_lesion(image: Tensor) -> Tensor:
    """(1, H, W) in [0, 1] -> (1, H, W) in {0, 1}, all zero where no region qualifies."""
    from scipy.ndimage import binary_fill_holes, label

    smooth = gaussian_blur(image[None], SMOOTHING * image.shape[-1])[0]
    best, best_score = torch.zeros_like(image), 0.0
    for cut in torch.quantile(smooth.flatten(), CUTS.to(image)):
        regions = label((smooth[0] < cut).numpy(), ALL_8)[0]
        sizes = np.bincount(regions.flat)
        fitting = (sizes >= SMALLEST * image.numel()) & (sizes <= LARGEST * image.numel())
        for number in np.flatnonzero(fitting[1:]) + 1:  # 0 is what is not dark
            region = torch.from_numpy(regions == number).float()[None]
            region_score = score(smooth, region)
            if region_score > best_score:
                best, best_score = region, region_score
    # what the outside cannot reach without crossing the region belongs to it
    return torch.from_numpy(binary_fill_holes(best[0].numpy(), ALL_8)).float()[None]


def score(smooth: Tensor, region: Tensor) -> float:
    """Mean grey of the rim minus that of the region, weighted by size and place."""
    from scipy.ndimage import maximum_filter

    width = 2 * max(1, round(RIM * region.shape[-1])) + 1
    rim = torch.from_numpy(maximum_filter(region[0].numpy(), width))[None] - region
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
