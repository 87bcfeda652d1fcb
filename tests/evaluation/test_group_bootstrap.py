"""ldm_us/evaluation/group_bootstrap.py: weighted statistics by repetition, and intervals that respect groups."""

import numpy as np
import pytest

from ldm_us.evaluation.group_bootstrap import grouped_interval, weighted_means, weighted_medians


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
