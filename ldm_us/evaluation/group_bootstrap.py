"""95 % intervals of means and medians of values that come in groups: the percentile bootstrap over whole groups.

Samples of one mask, or images of one near-duplicate family, are not independent. Drawing whole groups with replacement
(the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8) keeps what
they share, where drawing values one by one would make the interval too narrow.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
AT_ONCE = 1 << 20  # weights in memory


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
