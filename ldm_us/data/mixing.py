"""Draw training images from several datasets by weight: what a batch holds does not depend on how large each set is."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mixed_indices(sizes: Sequence[int], weights: Sequence[float], generator: torch.Generator, size: int) -> Tensor:
    """Draw (size,) int64 indices into the concatenation of datasets that hold `sizes` images each.

    Each slot picks dataset d with probability weights[d] / sum(weights), then one of its images uniformly, so an image
    of it comes with probability weights[d] / sum(weights) / sizes[d]. All draws are independent, with replacement.
    ValueError: not one weight a dataset, a weight that is negative or not finite, no weight above 0, or a weight above
    0 for a dataset without images.
    """
    check_weights(sizes, weights)
    n = torch.tensor(sizes)
    share = torch.tensor(weights, dtype=torch.float64)
    edges = (share / share.max()).cumsum(0)  # divided first: the sum of huge weights could overflow
    u, v = torch.rand(2, size, dtype=torch.float64, generator=generator)
    dataset = torch.searchsorted(edges / edges[-1], u, right=True)  # right: a weight of 0 is an empty interval
    image = (v * n[dataset]).long()
    return (n.cumsum(0) - n)[dataset] + image


def check_weights(sizes: Sequence[int], weights: Sequence[float]) -> None:
    """Refuse weights that say nothing about how to mix datasets of these sizes."""
    given = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(sizes):
        raise ValueError(f"Data weights {given}: {len(weights)} for {len(sizes)} datasets. Give one weight a dataset.")
    if any(weight < 0 or not math.isfinite(weight) for weight in weights):
        raise ValueError(f"Data weights {given}: each must be a number from 0 up. Use for example 1 2.")
    if not any(weights):
        raise ValueError(f"Data weights {given}: all are 0, so nothing would be drawn. Give one dataset more than 0.")
    for i, (n, weight) in enumerate(zip(sizes, weights, strict=True), start=1):
        if n == 0 and weight > 0:
            raise ValueError(f"Data weights {given}: dataset {i} has no images. Give it the weight 0, or leave it out.")
