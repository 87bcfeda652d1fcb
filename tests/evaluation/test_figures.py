"""Figures that sum many values up, against known values and their definition."""

import math

import pytest

from ldm_us.evaluation.figures import Z_95, accuracy, by_class, confusion, share_of, summary, wilson_interval


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
    figures = by_class([0.0, 1.0, 0.5], ["benign", "benign", "normal"])
    assert {label: figure["mean"] for label, figure in figures.items()} == {"all": 0.5, "benign": 0.5, "normal": 0.5}
    assert figures["normal"] == summary([0.5]) == {"mean": 0.5, "median": 0.5, "std": 0.0}
