"""Draw training images from datasets and classes by weight: what a batch holds does not depend on how large each is."""

import math
from collections.abc import Mapping, Sequence

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


def class_shares(given: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """{class: weight} of --class-weights: "equal" alone, or CLASS=WEIGHT for every class of the images `labels`.

    ValueError: a class that no image has, one without a weight, one given twice, a weight that is no number from 0 up.
    """
    found = sorted(set(labels))
    if list(given) == ["equal"]:
        return dict.fromkeys(found, 1.0)
    words, said = " ".join(given), f"The training images are of the classes {', '.join(found)}."
    shares: dict[str, float] = {}
    for one in given:
        name, _, weight = one.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or name in shares or not 0 <= value < math.inf:
            raise ValueError(f"--class-weights {words}: {one} is not one CLASS=NUMBER of 0 or more. {said}")
        shares[name] = value
    for what, names in (("no image is of", shares.keys() - set(found)), ("no weight for", set(found) - shares.keys())):
        if names:
            raise ValueError(f"--class-weights {words}: {what} {', '.join(sorted(names))}. {said} 0 leaves one out.")
    return shares


def group_shares(
    folders: Sequence[int], labels: Sequence[str], weights: Sequence[float], classes: Mapping[str, float]
) -> tuple[tuple[float, ...], list[int]]:
    """The share of each group of images, and the group of each: those of one folder and of one class.

    weights: of the folders; classes: of the classes that a folder has, which share what the folder has.
    ValueError: a folder with a weight above 0 has no class with one.
    """
    pairs = list(zip(folders, labels, strict=True))
    groups = sorted(set(pairs))
    total = {folder: sum(classes[label] for other, label in groups if other == folder) for folder, _ in groups}
    if any(weights[folder] > 0 and total[folder] == 0 for folder in total):
        raise ValueError("--class-weights: a folder of --data has only classes of the weight 0. Give one of them more.")
    share = [weights[folder] * classes[label] / (total[folder] or 1.0) for folder, label in groups]
    return tuple(share), [groups.index(pair) for pair in pairs]
