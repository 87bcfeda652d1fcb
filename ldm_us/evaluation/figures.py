"""Figures that sum many values up: mean and spread, shares with their 95 % interval, confusion of classes."""

import math
import statistics
from collections.abc import Sequence

from ldm_us.data.readers.busi import CLASSES

Z_95 = 1.959964  # standard deviations of a normal distribution that hold 95 % of it


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and standard deviation, to three digits after the point."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    figures = {"mean": statistics.mean(values), "median": statistics.median(values), "std": spread}
    return {name: round(value, 3) for name, value in figures.items()}


def by_class(values: Sequence[float], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean and spread over all values, and over those of each class."""
    groups = {"all": list(values)}
    for label in sorted(set(labels)):
        groups[label] = [value for value, other in zip(values, labels, strict=True) if other == label]
    return {label: summary(group) for label, group in groups.items()}


def wilson_interval(hits: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of a share of hits among n that holds its true value with 95 %.   Wilson, JASA 22 (1927) 209-212.

    Unlike hits / n +- z standard errors it stays in [0, 1] and has a width at 0 and n hits too.
    """
    assert 0 <= hits <= n
    assert n > 0
    share = hits / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(hits: Sequence[bool]) -> dict[str, float]:
    """The share of hits with its 95 % interval, to three digits after the point."""
    low, high = wilson_interval(sum(hits), len(hits))
    figures = {"share": sum(hits) / len(hits), "low": low, "high": high}
    return {name: round(value, 3) for name, value in figures.items()} | {"n": len(hits)}


def accuracy(asked: Sequence[str], named: Sequence[str]) -> dict[str, dict[str, float]]:
    """How often the named class is the asked one: over all, and over each asked class."""
    hits = [a == b for a, b in zip(asked, named, strict=True)]
    groups = {"all": hits}
    for label in sorted(set(asked)):
        groups[label] = [hit for hit, other in zip(hits, asked, strict=True) if other == label]
    return {label: share_of(group) for label, group in groups.items()}


def confusion(asked: Sequence[str], named: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many of each asked class were named what: {asked: {named: count}}."""
    pairs = list(zip(asked, named, strict=True))
    return {label: {other: pairs.count((label, other)) for other in CLASSES} for label in sorted(set(asked))}
