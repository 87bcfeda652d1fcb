"""The area under the ROC curve: the one count of pairs behind every AUC and Cliff's delta of the evaluation.

It is the chance that a positive scores higher than a negative, ties counted half (Mann-Whitney). A resample of images
is a weight for every image, so that the AUC of all resamples is one count too.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def auc(
    positive: NDArray[np.generic],
    negative: NDArray[np.generic],
    of_positive: Floats | None = None,
    of_negative: Floats | None = None,
) -> Floats:
    """Scores (n,) and (m,), with weights (..., n) and (..., m) or 1 each -> (...)."""
    of_positive = np.ones(len(positive)) if of_positive is None else of_positive
    of_negative = np.ones(len(negative)) if of_negative is None else of_negative
    order = np.argsort(negative, kind="stable")
    up_to = np.zeros((*of_negative.shape[:-1], len(negative) + 1))  # the weight of the lowest 0, 1, ... m negatives
    np.cumsum(of_negative[..., order], axis=-1, out=up_to[..., 1:])
    below, not_above = (np.searchsorted(negative[order], positive, side) for side in ("left", "right"))
    wins = (of_positive * (up_to[..., below] + up_to[..., not_above])).sum(axis=-1) / 2
    area: Floats = wins / (of_positive.sum(axis=-1) * up_to[..., -1])
    return area


def macro_auc(labels: Ints, probabilities: Floats, weights: Floats | None = None) -> Floats:
    """The mean of one-vs-rest over the classes with images: (n,), (n, classes), weights (..., n) or 1 each -> (...).

    As the paper's reference [24] computes it; Fawcett, "An introduction to ROC analysis", 2006. Raise ValueError where
    the images are of fewer than two classes; weights must leave some of every class, as those of group_weights do.
    """
    present = sorted(set(labels.tolist()))
    if len(present) < 2:
        raise ValueError("an AUC needs images of two classes. Test on more images.")
    weights = np.ones(len(labels)) if weights is None else weights
    of_class = []
    for k in present:
        own, rest = labels == k, labels != k
        of_class.append(auc(probabilities[own, k], probabilities[rest, k], weights[..., own], weights[..., rest]))
    mean: Floats = np.mean(of_class, axis=0)
    return mean
