"""Do two sets of values differ, and by how much: rank tests with an effect size, its interval, and Holm's correction.

Unpaired: Mann-Whitney and Cliff's delta (Cliff, Psychological Bulletin 114(3) (1993) 494-509). Paired: Wilcoxon's
signed ranks and the mean difference. Intervals are percentile bootstraps (Efron 1979). Values are to be independent:
one image of each family of near-duplicates.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles: 95 %


@dataclass(frozen=True)
class Difference:
    """The second set against the first."""

    effect: float  # Cliff's delta in [-1, 1]; paired: mean of second minus first
    low: float  # its 95 % interval
    high: float
    p: float  # two-sided, not corrected


def unpaired_difference(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Difference:
    """Compare values (n,) and (m,) of different images: Mann-Whitney test, Cliff's delta."""
    first, second = np.sort(first), np.sort(second)
    resampled = [
        cliffs_delta(
            first[np.sort(rng.integers(len(first), size=len(first)))],
            second[np.sort(rng.integers(len(second), size=len(second)))],
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(resampled, INTERVAL)
    p = scipy_stats().mannwhitneyu(first, second, alternative="two-sided").pvalue
    return Difference(cliffs_delta(first, second), float(low), float(high), float(p))


def cliffs_delta(first: np.ndarray, second: np.ndarray) -> float:
    """P(second > first) - P(second < first) over all pairs; `first` is sorted. The area under a ROC is (1 + it) / 2."""
    below = np.searchsorted(first, second, side="left")
    not_above = np.searchsorted(first, second, side="right")
    return float(((below + not_above) / len(first) - 1).mean())


def paired_difference(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Difference:
    """Compare values (n,) and (n,) of the same images: Wilcoxon's signed rank test, mean difference."""
    rises = second - first
    resampled = rng.choice(rises, (RESAMPLES, len(rises))).mean(axis=1)
    low, high = np.percentile(resampled, INTERVAL)
    p = scipy_stats().wilcoxon(rises).pvalue if rises.any() else 1.0
    return Difference(float(rises.mean()), float(low), float(high), float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, in their order.   Holm, Scandinavian J. of Statistics 6 (1979) 65-70."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def scipy_stats() -> Any:
    """The module scipy.stats. Raise ValueError, naming the extra, where it is not installed."""
    try:
        return importlib.import_module("scipy.stats")
    except ImportError as error:
        raise ValueError(
            f"the tests need SciPy ({error}). Install the extra eval: `pip install -e '.[eval]'`."
        ) from error
