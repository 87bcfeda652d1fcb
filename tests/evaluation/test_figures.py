"""Figures that sum many values up, against known values and their definition; intervals that respect groups."""

import math

import numpy as np
import pytest

from ldm_us.evaluation.figures import (
    Z_95,
    accuracy,
    by_class,
    confusion,
    grouped_interval,
    mean_and_spread,
    share_of,
    weighted_means,
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
    counts = confusion(["benign", "benign", "normal"], ["malignant", "benign", "normal"])
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
    assert weighted_means(values, weights) == pytest.approx([row.mean() for row in repeated])
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


def test_a_single_group_has_no_interval_and_equal_values_one_of_no_width() -> None:
    assert grouped_interval(np.array([0.1, 0.9]), ["a", "a"], "mean") is None
    assert grouped_interval(np.full(5, 0.25), list("abcde"), "mean") == (0.25, 0.25)
