"""MS-SSIM between images of one class: how much a set repeats itself.   Odena et al., arXiv 1610.09585, section 4.2

1 where all images of a class are the same image; the lower, the more diverse. Read it beside the real set's own, for
noise is more diverse than any breast. MS-SSIM: Wang, Simoncelli and Bovik, Asilomar 2003, as torchmetrics computes it:
at the coarsest scale the images are mirrored at the border, where the paper takes no window.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_us.data.records import Record
from ldm_us.evaluation.distribution.distances import rounded
from ldm_us.evaluation.sets.image_sets import stream

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first: Wang et al.
SMALLEST = (11, 22, 44, 99, 176)  # pixels along one side that 1, 2, ... scales need with a window of 11 pixels
MOST_PAIRS = 500  # of a class
NEEDED = 4  # images of a class: two pairs, for an interval


def scales_at(size: int) -> int:
    """The number of scales that images of this size have room for: 5 from 176 pixels on, 4 at 128."""
    scales = sum(size >= smallest for smallest in SMALLEST)
    if scales == 0:
        raise ValueError(
            f"--size {size}: MS-SSIM needs at least {SMALLEST[0]} pixels along a side. Give larger images."
        )
    return scales


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of each pair (b, 1, H, W) in [0, 1]: -> (b,). Exponents of fewer scales than 5 are scaled to sum 1."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    exponents = EXPONENTS[: scales_at(x.shape[-1])]
    betas = tuple(exponent / sum(exponents) for exponent in exponents)
    return multiscale_structural_similarity_index_measure(x, y, reduction="none", data_range=1.0, betas=betas)


def random_pairs(records: Sequence[Record], seed: int) -> list[tuple[Record, Record]]:
    """Pairs of different images, no image in two of them: so the pairs are independent, and their interval holds."""
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = [(records[i], records[j]) for i, j in zip(order[::2], order[1::2], strict=False)]
    return pairs[:MOST_PAIRS]


def mean_with_interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of independent values with the interval of Student's t that holds the true mean with 95 %."""
    from scipy.stats import t

    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    low, high = t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error else (mean, mean)
    return {"mean": mean, "low": float(low), "high": float(high), "pairs": len(values)}


def diversity(records: Sequence[Record], size: int, batch: int, seed: int) -> dict[str, Any]:
    """Mean MS-SSIM within each class, with its interval; a class of fewer than 4 images says why it is left out."""
    result: dict[str, Any] = {}
    for label in sorted({record.label for record in records}):
        members = sorted(record for record in records if record.label == label)
        if len(members) < NEEDED:
            result[label] = {"left_out": f"{len(members)} images, but MS-SSIM needs at least {NEEDED}."}
        else:
            images = [record for pair in random_pairs(members, seed) for record in pair]
            batches = stream(images, size, 2 * max(1, batch // 2))
            result[label] = mean_with_interval(
                [s for x in batches for s in ms_ssim(x[::2], x[1::2]).flatten().tolist()]
            )
    return rounded(result)
