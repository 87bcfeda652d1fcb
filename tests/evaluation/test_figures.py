"""Figures that sum many values up, against known values and their definition; intervals that respect groups."""

import math

import numpy as np
import pytest
import scipy.stats

from ldm_us.evaluation import figures
from ldm_us.evaluation.figures import (
    Z_95,
    accuracy,
    by_class,
    confusion,
    grouped_interval,
    mean_and_spread,
    share_of,
    student_95,
    weighted_medians,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # the first four: Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 10, 0.2366, 0.7634),
        (20, 20, 0.8389, 1.0000),
    ],
)
def test_wilson_intervals_have_their_published_values(hits, n, low, high):
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=6e-5)


def test_a_wilson_bound_is_the_share_from_which_the_hits_are_as_far_as_z_says():
    """The definition: (hits / n - p)^2 = z^2 p (1 - p) / n at both ends."""
    for hits, n in ((3, 17), (27, 30), (50, 51)):
        for p in wilson_interval(hits, n):
            assert (hits / n - p) ** 2 == pytest.approx(Z_95**2 * p * (1 - p) / n)


def test_z_is_the_two_sided_95_percent_point_of_the_normal_distribution():
    assert math.erf(Z_95 / math.sqrt(2)) == pytest.approx(0.95, abs=1e-7)


def test_accuracy_is_over_all_and_over_each_asked_class():
    asked = ["benign"] * 4 + ["normal"] * 2
    named = ["benign", "benign", "malignant", "normal", "normal", "normal"]
    figures = accuracy(asked, named)
    assert {label: figure["share"] for label, figure in figures.items()} == {"all": 0.667, "benign": 0.5, "normal": 1.0}
    assert {label: figure["n"] for label, figure in figures.items()} == {"all": 6, "benign": 4, "normal": 2}
    assert figures["normal"] == share_of([True, True])


def test_confusion_counts_what_each_asked_class_was_named():
    counts = confusion(
        ["benign", "benign", "normal"], ["malignant", "benign", "normal"], ("benign", "malignant", "normal")
    )
    assert counts == {
        "benign": {"benign": 1, "malignant": 1, "normal": 0},
        "normal": {"benign": 0, "malignant": 0, "normal": 1},
    }


def test_means_are_over_all_and_over_each_class():
    figures = by_class(mean_and_spread, [0.0, 1.0, 0.5], ["benign", "benign", "normal"])
    assert {label: figure["mean"] for label, figure in figures.items()} == {"all": 0.5, "benign": 0.5, "normal": 0.5}
    assert figures["normal"] == mean_and_spread([0.5]) == {"mean": 0.5, "median": 0.5, "std": 0.0}


def test_weighted_statistics_are_those_of_values_repeated_as_often_as_their_weights_say() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=9).round(1))  # some are equal
    weights = rng.integers(0, 4, (200, 9))
    weights[:, 4] += weights.sum(axis=1) == 0
    repeated = [np.repeat(values, row) for row in weights]
    assert weighted_medians(values, weights) == pytest.approx([np.median(row) for row in repeated])


def test_the_interval_of_independent_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    groups = [str(i) for i in range(400)]
    low, high = grouped_interval(values, groups, "mean")
    error = values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.03)
    low, high = grouped_interval(values, groups, "median")
    assert high - low == pytest.approx(2 * 1.96 * error * np.sqrt(np.pi / 2), rel=0.3)  # large n, normal values


def test_copies_of_a_value_in_its_group_make_the_interval_no_narrower() -> None:
    """25 values 16 times each: resampled one by one, the interval would be 4 times narrower."""
    values = np.random.default_rng(2).normal(size=25)
    alone = grouped_interval(values, [str(i) for i in range(25)], "mean")
    copied = grouped_interval(np.repeat(values, 16), [str(i) for i in range(25) for _ in range(16)], "mean")
    apart = grouped_interval(np.repeat(values, 16), [str(i) for i in range(400)], "mean")
    assert copied == pytest.approx(alone, abs=0.05)
    assert apart[1] - apart[0] < 0.4 * (copied[1] - copied[0])


def test_the_order_of_the_values_does_not_matter_and_a_call_again_gives_the_same() -> None:
    rng = np.random.default_rng(3)
    values, groups = rng.normal(size=40), [f"g{i % 7}" for i in range(40)]
    order = rng.permutation(40)
    first = grouped_interval(values, groups, "median")
    assert grouped_interval(values, groups, "median") == first
    assert grouped_interval(values[order], [groups[i] for i in order], "median") == first


def test_values_that_weigh_as_few_groups_have_no_interval_and_equal_values_one_of_no_width() -> None:
    values = np.random.default_rng(4).normal(size=40)
    for groups in (["a"] * 40, [str(i % 5) for i in range(40)], [*"bcdefghij", *"a" * 31]):
        for statistic in ("mean", "median"):
            assert grouped_interval(values, groups, statistic) is None
    assert grouped_interval(np.full(6, 0.25), list("abcdef"), "mean") == (0.25, 0.25)


@pytest.mark.parametrize("groups", [6, 10, 20])
def test_intervals_of_few_groups_hold_the_truth_95_times_in_100_and_groups_of_other_sizes_too(groups, monkeypatch):
    """Values share a part within their group; 300 sets tell 0.95 within 0.025. Percentiles held .85 to .92 here."""
    monkeypatch.setattr(figures, "RESAMPLES", 300)
    rng, held = np.random.default_rng(groups), {"mean": 0, "median": 0}
    for trial in range(300):
        sizes = np.full(groups, 3) if trial % 2 else np.arange(groups) % 3 + 2
        names = np.repeat([str(i) for i in range(groups)], sizes)
        values = np.repeat(rng.normal(size=groups), sizes) + rng.normal(size=len(names))
        for statistic in held:
            found = grouped_interval(values, names, statistic)
            held[statistic] += found is None or found[0] <= 0 <= found[1]
    assert held["mean"] / 300 == pytest.approx(0.95, abs=0.025)
    assert 0.91 <= held["median"] / 300 <= 0.98


def test_the_error_of_a_mean_is_the_jackknife_over_groups_times_students_quantile() -> None:
    """Written out: the mean without each group, and scipy's quantile of as many groups as have that weight, less 1."""
    values, names = np.random.default_rng(5).normal(size=21), [f"g{i % 8}" for i in range(21)]
    without = [np.mean([v for v, n in zip(values, names, strict=True) if n != name]) for name in sorted(set(names))]
    error = math.sqrt(7 / 8 * sum((one - values.mean()) ** 2 for one in without))
    effective = 21**2 / sum(names.count(name) ** 2 for name in set(names))
    half = scipy.stats.t.ppf(0.975, effective - 1) * error
    assert grouped_interval(values, names, "mean") == pytest.approx(
        (values.mean() - half, values.mean() + half), rel=2e-3
    )
    for freedom in (5, 7.5, 30, 1000):
        assert student_95(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=3e-3)
