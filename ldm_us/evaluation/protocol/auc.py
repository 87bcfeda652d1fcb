"""AUC as the paper's reference [24] computes it, with intervals for images that come in families.

The AUC of several classes is the unweighted mean of one-vs-rest over the classes that are present ([24]; Fawcett, "An
introduction to ROC analysis", 2006). Intervals: the cluster bootstrap (Field and Welsh, JRSS B 69(3), 2007): whole
groups (families, patients) are drawn with replacement. A resample is a weight for every image, and the AUC of weighted
images is w+' C w- / (sum w+ sum w-), with C the comparisons of positive and negative scores (Mann-Whitney), so that
all resamples are two products of matrices. Differences between arms use the same resamples: they are paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """A figure with its 95 percent interval."""

    value: float
    low: float
    high: float


def macro_auc(labels: Ints, probabilities: Floats) -> float:
    """labels (n,), probabilities (n, classes) -> mean of one-vs-rest; classes without images are skipped.

    Raise ValueError where the images are of fewer than two classes, or scikit-learn is not installed.
    """
    roc_auc_score = sklearn_metrics().roc_auc_score
    present = sorted(set(labels.tolist()))
    if len(present) < 2:
        raise ValueError("an AUC needs images of two classes. Test on more images.")
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in present]))


def sklearn_metrics():  # type: ignore[no-untyped-def]  # a module of an extra
    """scikit-learn's metrics. Raise ValueError, naming the extra, where it is not installed."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ValueError(
            f"AUCs need scikit-learn ({error}). Install the extra eval: `pip install -e '.[eval]'`."
        ) from error
    return metrics


def group_weights(groups: Sequence[str], resamples: int, seed: int) -> Floats:
    """How often each image is in each resample of whole groups: (resamples, n)."""
    names, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    weights: Floats = drawn[:, index].astype(np.float64)
    return weights


def weighted_macro_auc(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """The macro AUC of every resample: (n,), (n, classes), (resamples, n) -> (resamples,).

    A class that a resample lacks, or has alone, is skipped in it; nan where that leaves none.
    """
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for k in sorted(set(labels.tolist())):
        positive, negative = labels == k, labels != k
        one, other = probabilities[positive, k][:, None], probabilities[negative, k][None, :]
        comparisons = (one > other) + 0.5 * (one == other)  # C, (n+, n-)
        among, against = weights[:, positive], weights[:, negative]
        pairs = among.sum(axis=1) * against.sum(axis=1)
        wins = ((among @ comparisons) * against).sum(axis=1)
        total += np.divide(wins, pairs, out=np.zeros_like(wins), where=pairs > 0)
        count += pairs > 0
    auc: Floats = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return auc


def interval(value: float, resampled: Floats) -> Interval:
    """The percentile interval of a figure."""
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def sensitivity_specificity(labels: Ints, probabilities: Floats, k: int) -> tuple[float, float]:
    """Of the images of class k the share that is named k, and of all others the share that is not."""
    named = probabilities.argmax(axis=1) == k
    return float(named[labels == k].mean()), float((~named)[labels != k].mean())
