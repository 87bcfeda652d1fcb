"""Do two sets of values differ, and by how much: rank tests with an effect size, its interval, and Holm's correction.

Unpaired: Mann-Whitney and Cliff's delta (Cliff, Psychological Bulletin 114(3) (1993) 494-509). Paired: Wilcoxon's
signed ranks and the mean difference. Intervals are percentile bootstraps (Efron 1979). Values are to be independent:
one image of each family of near-duplicates. Sets of several classes are compared class by class and the results
averaged, so that another mix of classes is no difference.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_us.evaluation.auc import auc
from ldm_us.runtime.checks import check_extra

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles: 95 %


@dataclass(frozen=True)
class Difference:
    """The second set against the first."""

    effect: float  # Cliff's delta in [-1, 1]; paired: mean of second minus first
    low: float  # its 95 % interval
    high: float
    p: float  # two-sided, not corrected


def within_classes(classes: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> Difference:
    """Compare the values of each class, (n_c,) and (m_c,), and average: Cliff's deltas in the first set's shares.

    The test of one class is that of Mann and Whitney. Of several it is that of each class, its U / (n m) weighted
    likewise: the normal approximation of a stratified rank test (van Elteren, Bulletin de l'Institut International de
    Statistique 37 (1960) 351-361).
    """
    weights = np.array([len(first) for first, _ in classes]) / sum(len(first) for first, _ in classes)
    effect = float(weights @ [cliffs_delta(first, second) for first, second in classes])
    variance = float(weights**2 @ [delta_variance(*pair) for pair in classes])
    if len(classes) == 1:
        p = scipy_stats().mannwhitneyu(*classes[0], alternative="two-sided").pvalue
    else:
        p = 2 * scipy_stats().norm.sf(abs(effect) / np.sqrt(variance)) if variance > 0 else 1.0
    return Difference(effect, *delta_interval(classes, weights, rng), float(p))


def delta_variance(first: np.ndarray, second: np.ndarray) -> float:
    """The variance of Cliff's delta, 2 U / (n m) - 1, where both sets have one distribution, ties counted."""
    n, m = len(first), len(second)
    ties = np.unique(np.concatenate([first, second]), return_counts=True)[1].astype(float)
    total = n + m
    return float((total + 1 - (ties**3 - ties).sum() / (total * (total - 1))) / (3 * n * m))


def delta_interval(
    classes: Sequence[tuple[np.ndarray, np.ndarray]], weights: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """The 95 % interval of the weighted Cliff's delta: the images of each class and set are drawn anew."""
    ordered = [(np.sort(first), np.sort(second)) for first, second in classes]
    resampled = [
        weights @ [cliffs_delta(*(one[rng.integers(len(one), size=len(one))] for one in pair)) for pair in ordered]
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(resampled, INTERVAL)
    return float(low), float(high)


def cliffs_delta(first: np.ndarray, second: np.ndarray) -> float:
    """P(second > first) - P(second < first) over all pairs."""
    return float(2 * auc(second, first) - 1)


def paired_difference(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Difference:
    """Compare values (n,) and (n,) of the same images: Wilcoxon's signed rank test, mean difference."""
    rises = second - first
    resampled = rng.choice(rises, (RESAMPLES, len(rises))).mean(axis=1)
    low, high = np.percentile(resampled, INTERVAL)
    p = scipy_stats().wilcoxon(rises).pvalue if rises.any() else 1.0
    return Difference(float(rises.mean()), float(low), float(high), float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, in their order.   Holm, Scandinavian J. of Statistics 6 (1979) 65-70."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.arange(len(order), 0, -1) * np.asarray(p_values)[order]
    corrected: list[float] = np.maximum.accumulate(stepped).clip(max=1)[np.argsort(order)].tolist()
    return corrected


def scipy_stats() -> Any:
    """The module scipy.stats. Raise ValueError, naming the extra, where it is not installed."""
    check_extra("eval", "scipy")
    return importlib.import_module("scipy.stats")
