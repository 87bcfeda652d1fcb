"""Intervals of 95 percent for AUCs and their paired differences, over test images and classifier seeds.

Images: families (or patients) are resampled within each class, one fewer than there are, which makes the variance
unbiased (Rao and Wu, JASA 83(401), 1988). Seeds are the readers of Obuchowski and Rockette (Commun. Stat. 24(2), 1995):
their spread adds what images do not explain. Few seeds know it badly, so the quantile is Student's, with the degrees of
freedom of Satterthwaite (Biometrics Bulletin 2(6), 1946).

An interval is symmetric in the logit of the AUC (Pepe, The Statistical Evaluation of Medical Tests, 2003, 5.2.5).
Percentiles of resamples are too narrow near 1: at an AUC of 0.976, 8 against 40 images, they hold the truth in 77 of
100 sets, and this in 97. A difference takes the margins of both arms and their covariance (MOVER, Zou and Donner,
Stat. Med. 27(10), 2008).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldm_us.evaluation.auc import Floats, Ints

MISSED = 0.05  # share of intervals that may miss the truth
VARIANCE_KNOWN = 1e6  # degrees of freedom at which Student's quantile is the normal one


class Interval(NamedTuple):
    """A figure with its 95 percent interval."""

    value: float
    low: float
    high: float


class Measured(NamedTuple):
    """The AUC of an arm for each of its seeds, and in every resample of the test images."""

    values: Floats  # (seeds,)
    resampled: Floats  # (resamples, seeds)


class Variance(NamedTuple):
    """The variance of a mean over seeds, by where it comes from."""

    of_images: float
    of_seeds: float
    seeds: int

    @property
    def total(self) -> float:
        """Of both."""
        return self.of_images + self.of_seeds

    @property
    def deviations(self) -> float:
        """How many standard deviations a margin has: images are many, seeds have one degree of freedom fewer."""
        from scipy.special import stdtrit  # comes with scikit-learn

        share = self.of_seeds / self.total if self.of_seeds > 0 else 0.0
        freedom = min((self.seeds - 1) / share**2, VARIANCE_KNOWN) if share > 1e-6 else VARIANCE_KNOWN
        return float(stdtrit(freedom, 1 - MISSED / 2))


class Families(NamedTuple):
    """What a test set's families say where resamples say nothing."""

    fewest: int  # of a class
    least: float  # the lower end of an AUC of 1


def group_weights(groups: Sequence[str], labels: Ints, resamples: int, seed: int) -> Floats:
    """How often each image is in each resample of whole groups within their class: (resamples, n)."""
    names, first, index = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
    label_of_group = labels[first]
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, len(names)))
    for k in np.unique(label_of_group):
        count = int((label_of_group == k).sum())
        drawn[:, label_of_group == k] = rng.multinomial(max(count - 1, 1), [1 / count] * count, size=resamples)
    return drawn[:, index]


def count_families(groups: Sequence[str], labels: Ints) -> Families:
    """Count families a class, and bound an AUC of 1 by them.

    Where the m families of the rarer side are all ranked right, so are m disjoint pairs, each with a chance of at most
    the AUC: a perfect test set has a chance of at most AUC^m, which is MISSED / 2 at the bound (Clopper and Pearson,
    1934). Of several classes: the mean of their bounds.
    """
    of_class = [len({group for group, label in zip(groups, labels, strict=True) if label == k}) for k in set(labels)]
    rarer = [min(count, sum(of_class) - count) for count in of_class]
    return Families(min(of_class), float(np.mean([(MISSED / 2) ** (1 / m) for m in rarer])))


def variance_of_mean(one: Measured) -> Variance:
    """The variance of the mean AUC of the seeds, over other images and other seeds.

    Resampled images vary the mean by what all seeds share and by a share of what is of one seed and its images. The
    latter spreads the seeds too, and is taken out there, so that it counts once.
    """
    seeds = len(one.values)
    images = float(one.resampled.mean(axis=1).var(ddof=1))
    if seeds == 1:
        return Variance(images, 0.0, 1)
    seeds_by_images = (float(one.resampled.var(axis=0, ddof=1).mean()) - images) / (seeds - 1)
    return Variance(images, max(float(one.values.var(ddof=1)) / seeds - seeds_by_images, 0.0), seeds)


def logit_interval(value: float, variance: float, deviations: float, families: Families) -> Interval:
    """The interval of an AUC of this variance; never of no width.

    Resamples that all agree say nothing: the variance is then the most that an AUC of m families can have,
    A (1 - A) / m (Birnbaum and Klose, Ann. Math. Stat. 28, 1957); at an AUC of 1 (or 0) the bound of count_families is
    the end.
    """
    inner = value * (1 - value)
    if inner < 1e-12:
        return Interval(value, *((families.least, 1.0) if value > 0.5 else (0.0, 1 - families.least)))
    margin = deviations * np.sqrt(variance or inner / families.fewest) / inner  # on the scale of logits
    low, high = (1 / (1 + (1 / value - 1) * np.exp(sign * margin)) for sign in (1, -1))
    return Interval(value, float(low), float(high))


def auc_interval(one: Measured, families: Families) -> Interval:
    """The mean AUC of the seeds of an arm."""
    variance = variance_of_mean(one)
    return logit_interval(float(one.values.mean()), variance.total, variance.deviations, families)


def difference_interval(one: Measured, other: Measured, families: Families) -> Interval:
    """The mean AUC of one arm minus that of another, on the same resamples of the same images, seed by seed."""
    both = variance_of_mean(Measured(one.values - other.values, one.resampled - other.resampled))
    of_one, of_other = variance_of_mean(one).total, variance_of_mean(other).total
    a = logit_interval(float(one.values.mean()), of_one, both.deviations, families)
    b = logit_interval(float(other.values.mean()), of_other, both.deviations, families)
    root = np.sqrt(of_one * of_other)
    r = float(np.clip((of_one + of_other - both.total) / (2 * root), -1, 1)) if root > 0 else 0.0

    def combined(x: float, y: float) -> float:
        return float(np.sqrt(max(x**2 + y**2 - 2 * r * x * y, 0.0)))

    value = a.value - b.value
    low = value - combined(a.value - a.low, b.high - b.value)
    return Interval(value, low, value + combined(a.high - a.value, b.value - b.low))
