"""ldm_us/evaluation/difference.py: effects by double loops, intervals that hold the truth, Holm by its definition."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm

from ldm_us.evaluation import difference
from ldm_us.evaluation.difference import cliffs_delta, holm, paired_difference, scipy_stats, within_classes

few = st.lists(st.integers(0, 5), min_size=1, max_size=12)


@given(few, few)
def test_cliffs_delta_is_that_of_all_pairs(first, second):
    expected = np.mean([(b > a) - (b < a) for a in first for b in second])
    assert cliffs_delta(np.sort(first), np.array(second)) == pytest.approx(expected)


def test_the_interval_of_the_effect_holds_the_true_effect_and_p_finds_it():
    """For N(0, 1) and N(d, 1), delta = 2 Phi(d / sqrt(2)) - 1."""
    rng = np.random.default_rng(0)
    found = within_classes([(rng.normal(size=200), rng.normal(0.8, 1, 150))], np.random.default_rng(1))
    true = 2 * norm.cdf(0.8 / np.sqrt(2)) - 1
    assert found.low < true < found.high
    assert found.low < found.effect < found.high
    assert found.p < 1e-6


def test_p_of_equal_distributions_is_below_5_percent_in_about_5_percent(monkeypatch):
    monkeypatch.setattr(difference, "RESAMPLES", 2)
    rng = np.random.default_rng(2)
    for test in (lambda *pair: within_classes([pair], rng), lambda *pair: paired_difference(*pair, rng)):
        hits = [test(rng.normal(size=40), rng.normal(size=40)).p < 0.05 for _ in range(300)]
        assert 0.02 < np.mean(hits) < 0.09


def test_the_paired_difference_is_the_mean_rise_and_sees_what_the_unpaired_test_does_not():
    rng = np.random.default_rng(3)
    first = rng.normal(0, 10, 60)
    second = first + rng.normal(0.5, 1, 60)
    found = paired_difference(first, second, np.random.default_rng(4))
    assert found.effect == pytest.approx(second.mean() - first.mean())
    assert found.low < 0.5 < found.high
    assert found.p < 0.01 < 0.5 < within_classes([(first, second)], np.random.default_rng(4)).p
    half_width = 1.96 * (second - first).std(ddof=1) / np.sqrt(60)
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.1)


def test_pairs_without_any_difference_have_a_p_of_1():
    values = np.arange(20.0)
    assert paired_difference(values, values, np.random.default_rng(0)) == difference.Difference(0, 0, 0, 1)


def test_holm_multiplies_the_smallest_by_the_number_of_tests_the_next_by_one_less_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match=r"Install the extra eval"):
        scipy_stats()


def test_one_class_gives_the_mann_whitney_test_and_many_its_rate_of_false_alarms(monkeypatch):
    """With ties, and with class shares and levels that differ: only within classes is there nothing to find."""
    monkeypatch.setattr(difference, "RESAMPLES", 2)
    rng = np.random.default_rng(5)
    pair = rng.normal(size=30), rng.normal(0.3, 1, 20)
    assert difference.within_classes([pair], rng).p == mannwhitneyu(*pair).pvalue
    hits = []
    for _ in range(500):
        classes = [
            (rng.poisson(level, n).astype(float), rng.poisson(level, m).astype(float))
            for level, n, m in ((1, 30, 8), (4, 10, 25), (9, 12, 12))
        ]
        hits.append(difference.within_classes(classes, rng).p < 0.05)
    assert 0.03 < np.mean(hits) < 0.075


def test_the_variance_of_delta_is_that_of_scipys_mann_whitney_without_continuity_correction():
    rng = np.random.default_rng(6)
    first, second = rng.integers(0, 6, 40).astype(float), rng.integers(1, 7, 30).astype(float)
    expected = mannwhitneyu(first, second, method="asymptotic", use_continuity=False).pvalue
    z = cliffs_delta(np.sort(first), second) / np.sqrt(difference.delta_variance(first, second))
    assert 2 * norm.sf(abs(z)) == pytest.approx(expected)
