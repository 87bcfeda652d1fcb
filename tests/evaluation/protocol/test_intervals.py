"""Intervals of the protocol: they hold the truth as often as they say, near an AUC of 1 too, and over seeds."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t

from ldm_us.evaluation.auc import auc
from ldm_us.evaluation.protocol.intervals import (
    Families,
    Measured,
    Variance,
    auc_interval,
    count_families,
    difference_interval,
    group_weights,
    logit_interval,
    variance_of_mean,
)

TRIALS, RESAMPLES = 250, 200


def measure(scores, labels, seed):
    """An arm of one row of scores a classifier, higher for class 1; resamples of independent images."""
    weights = group_weights([str(i) for i in range(len(labels))], labels, RESAMPLES, seed)
    own, rest = labels == 1, labels != 1
    values = [auc(row[own], row[rest]) for row in scores]
    resampled = [auc(row[own], row[rest], weights[:, own], weights[:, rest]) for row in scores]
    return Measured(np.array(values), np.stack(resampled, axis=1))


def families_of(labels):
    return count_families([str(i) for i in range(len(labels))], labels)


@pytest.mark.parametrize("sizes", [(26, 130), (8, 40)])
@pytest.mark.parametrize("true", [0.8, 0.9, 0.976])
def test_intervals_hold_the_true_auc_95_times_in_100_at_the_sizes_of_busi(sizes, true):
    """Binormal scores a distance d apart have the AUC Phi(d / sqrt 2). 250 sets tell 0.95 within 0.03."""
    rng, labels = np.random.default_rng(0), np.repeat([1, 0], sizes)
    scores = rng.normal(labels * math.sqrt(2) * norm.ppf(true), size=(TRIALS, 1, len(labels)))
    found = [auc_interval(measure(one, labels, trial), families_of(labels)) for trial, one in enumerate(scores)]
    assert np.mean([one.low <= true <= one.high for one in found]) >= 0.92
    assert all(0 <= one.low < one.value <= one.high <= 1 for one in found)


@pytest.mark.parametrize(("spread", "noise"), [(0.5, 0.2), (0.0, 0.7)])
def test_arms_of_one_distribution_differ_in_5_of_100_sets_though_their_seeds_spread(spread, noise):
    """Type I error: the images are shared, the seeds differ in how good they are, or in what they get wrong."""
    rng, labels, held, held_by_images = np.random.default_rng(1), np.repeat([1, 0], [26, 130]), 0, 0
    for trial in range(TRIALS):
        images = rng.normal(size=156)
        good = 1.2 + spread * rng.normal(size=(2, 3, 1))
        scores = labels * good + images + noise * rng.normal(size=(2, 3, 156))
        one, other = (measure(arm, labels, trial) for arm in scores)
        found = difference_interval(one, other, families_of(labels))
        held += found.low <= 0 <= found.high
        drawn = (one.resampled - other.resampled).mean(axis=1)  # the seeds taken as fixed
        held_by_images += np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975)
    assert held / TRIALS >= 0.91
    assert held_by_images < held


def test_perfect_separation_has_the_exact_interval_of_as_many_successes_as_the_rarer_class_has_families():
    labels = np.repeat([1, 0], [8, 40])
    one = measure([labels.astype(float)], labels, 0)
    found = auc_interval(one, families_of(labels))
    assert tuple(found)[::2] == (1.0, 1.0)
    assert found.low == pytest.approx(binomtest(8, 8).proportion_ci(method="exact").low)
    both = difference_interval(one, one, families_of(labels))
    assert tuple(both) == pytest.approx((0, found.low - 1, 1 - found.low))
    wrong = auc_interval(measure([-labels.astype(float)], labels, 0), families_of(labels))
    assert tuple(wrong) == pytest.approx((0, 0, 1 - found.low))


def test_families_are_counted_and_not_their_images():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    found = count_families(["a", "a", "a", "b", "c", "d", "e"], labels)
    assert found.fewest == 1
    assert found.least == pytest.approx(np.mean([0.025 ** (1 / 2), 0.025 ** (1 / 2), 0.025]))


def test_resamples_that_agree_leave_the_largest_variance_of_as_many_families():
    labels = np.repeat([1, 0], [25, 100])
    found = auc_interval(measure([np.zeros(125)], labels, 0), families_of(labels))
    margin = 1.96 * math.sqrt(0.25 / 25) / 0.25
    assert found.low == pytest.approx(1 / (1 + math.exp(margin)), abs=1e-4)
    assert found.low + found.high == pytest.approx(1)


def test_the_interval_is_symmetric_on_the_scale_of_logits_and_the_delta_method_near_the_middle():
    found = logit_interval(0.9, 0.02**2, 1.96, Families(20, 0.8))
    low, value, high = (math.log(p / (1 - p)) for p in (found.low, found.value, found.high))
    assert high - value == pytest.approx(value - low) == pytest.approx(1.96 * 0.02 / 0.09)


def test_the_variance_of_the_mean_is_that_of_a_table_of_images_by_seeds():
    """Values of image i and seed s are a_i + b_s + c_is: their mean has the variance A / n + B / S + C / (n S)."""
    rng, n, seeds = np.random.default_rng(3), 40, 3
    a, b, c = 0.6, 0.05, 1.0
    found = []
    for _ in range(300):
        values = a * rng.normal(size=(n, 1)) + b * rng.normal(size=(1, seeds)) + c * rng.normal(size=(n, seeds))
        drawn = rng.multinomial(n - 1, [1 / n] * n, size=200) / (n - 1)
        found.append(variance_of_mean(Measured(values.mean(axis=0), drawn @ values)).total)
    expected = a**2 / n + b**2 / seeds + c**2 / (n * seeds)
    assert expected < np.mean(found) < 1.25 * expected  # seeds never explain less than nothing, so a little more


def test_the_quantile_is_students_where_seeds_alone_vary_and_normal_where_images_do():
    assert Variance(0.0, 0.01, 3).deviations == pytest.approx(t.ppf(0.975, 2))
    assert Variance(0.01, 0.01, 3).deviations == pytest.approx(t.ppf(0.975, 8))
    assert Variance(0.01, 0.0, 1).deviations == pytest.approx(norm.ppf(0.975), abs=1e-4)
