"""AUC as the paper's reference [24] computes it, of a test set and of many resamples of it.

The AUC of several classes is the unweighted mean of one-vs-rest over the classes that are present ([24]; Fawcett, "An
introduction to ROC analysis", 2006). A resample is a weight for every image, and the AUC of weighted images is
w+' C w- / (sum w+ sum w-), with C the comparisons of positive and negative scores (Mann-Whitney), so that all
resamples are two products of matrices.
"""

import numpy as np

from ldm_us.evaluation.protocol.intervals import Floats, Ints
from ldm_us.runtime.checks import check_extra


def macro_auc(labels: Ints, probabilities: Floats) -> float:
    """labels (n,), probabilities (n, classes) -> mean of one-vs-rest; classes without images are skipped.

    Raise ValueError where the images are of fewer than two classes, or scikit-learn is not installed.
    """
    check_extra("eval", "sklearn")
    from sklearn.metrics import roc_auc_score

    present = sorted(set(labels.tolist()))
    if len(present) < 2:
        raise ValueError("an AUC needs images of two classes. Test on more images.")
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in present]))


def weighted_macro_auc(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """The macro AUC of every resample: (n,), (n, classes), (resamples, n) -> (resamples,).

    Every resample must hold every class, as those of group_weights do.
    """
    of_class = []
    for k in sorted(set(labels.tolist())):
        positive, negative = labels == k, labels != k
        one, other = probabilities[positive, k][:, None], probabilities[negative, k][None, :]
        comparisons = (one > other) + 0.5 * (one == other)  # C, (n+, n-)
        among, against = weights[:, positive], weights[:, negative]
        wins = ((among @ comparisons) * against).sum(axis=1)
        of_class.append(wins / (among.sum(axis=1) * against.sum(axis=1)))
    auc: Floats = np.mean(of_class, axis=0)
    return auc


def sensitivity_specificity(labels: Ints, probabilities: Floats, k: int) -> tuple[float, float]:
    """Of the images of class k the share that is named k, and of all others the share that is not."""
    named = probabilities.argmax(axis=1) == k
    return float(named[labels == k].mean()), float((~named)[labels != k].mean())
