"""Figures that sum many values up: mean and spread, confusion of classes, and 95 % intervals of shares and groups.

Samples of one mask, or images of one near-duplicate family, are not independent. Drawing whole groups with replacement
(the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8) keeps what
they share, where drawing values one by one would make the interval too narrow.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ldm_us.data.readers.busi import CLASSES

Z_95 = 1.959964  # standard deviations of a normal distribution that hold 95 % of it
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
AT_ONCE = 1 << 20  # weights in memory

Item = TypeVar("Item")
Figure = TypeVar("Figure")


def mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and standard deviation, to three digits after the point."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    figures = {"mean": statistics.mean(values), "median": statistics.median(values), "std": spread}
    return {name: round(value, 3) for name, value in figures.items()}


def by_class(
    figure: Callable[[Sequence[Item]], Figure], values: Sequence[Item], labels: Sequence[str]
) -> dict[str, Figure]:
    """A figure of all values, and of those of each class."""
    groups = {"all": list(values)}
    for label in sorted(set(labels)):
        groups[label] = [value for value, other in zip(values, labels, strict=True) if other == label]
    return {label: figure(group) for label, group in groups.items()}


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
    return by_class(share_of, [a == b for a, b in zip(asked, named, strict=True)], asked)


def confusion(asked: Sequence[str], named: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many of each asked class were named what: {asked: {named: count}}."""
    pairs = list(zip(asked, named, strict=True))
    return {label: {other: pairs.count((label, other)) for other in CLASSES} for label in sorted(set(asked))}


def grouped_interval(values: np.ndarray, groups: Sequence[str], statistic: str) -> tuple[float, float] | None:
    """The 95 % interval of the "mean" or "median" of values (n,), value i being of groups[i]; None for a single group.

    The same values and groups always give the same interval: the generator has a seed of its own.
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    assert len(values) == len(members)
    if len(names) < 2:
        return None
    rng = np.random.default_rng(0)
    order = np.argsort(values, kind="stable")
    values, members = values[order].astype(np.float64), members[order]
    chunk = max(1, AT_ONCE // len(values))
    resampled = []
    for start in range(0, RESAMPLES, chunk):
        draws = min(chunk, RESAMPLES - start)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)  # (draws, groups)
        weights = times[:, members]  # (draws, groups) -> (draws, n): how often each value was drawn
        resampled.append(weighted_means(values, weights) if statistic == "mean" else weighted_medians(values, weights))
    low, high = np.percentile(np.concatenate(resampled), PERCENTILES)
    return float(low), float(high)


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,), whole weights (draws, n) -> (draws,): the mean of each value repeated as often as its weight says."""
    return (weights @ values) / weights.sum(axis=1)


def weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) sorted, whole weights (draws, n) -> (draws,): the median of each value repeated as often as it says."""
    up_to = weights.cumsum(axis=1)
    half = up_to[:, -1:] / 2
    lower, upper = (up_to >= half).argmax(axis=1), (up_to > half).argmax(axis=1)
    return (values[lower] + values[upper]) / 2
