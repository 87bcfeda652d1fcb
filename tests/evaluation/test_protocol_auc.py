"""AUC, cluster bootstrap and paired differences of the protocol, against counts by hand and closed forms."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ldm_us.evaluation.protocol.arms import Arm
from ldm_us.evaluation.protocol.auc import (
    group_weights,
    interval,
    macro_auc,
    sensitivity_specificity,
    weighted_macro_auc,
)
from ldm_us.evaluation.protocol.tables import cautions, cells, make_rows, to_csv

CLASSES = ["benign", "malignant", "normal"]


def test_the_auc_is_the_share_of_pairs_in_order_counted_by_hand():
    labels = np.array([0, 0, 1, 1, 2])
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.6, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    benign = (3 + 2) / 6  # 0.7 beats 0.2 0.5 0.1; 0.3 beats 0.2 and 0.1
    malignant = (2.5 + 2) / 6  # 0.6 beats 0.2 0.2 and ties with 0.6; 0.3 beats 0.2 and 0.2
    normal = 4 / 4  # 0.7 beats all
    assert macro_auc(labels, p) == pytest.approx((benign + malignant + normal) / 3)


def test_classes_without_images_are_skipped_and_one_class_alone_is_refused():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.45, 0.15]])
    assert macro_auc(np.array([0, 1, 1]), p) == pytest.approx((1 + 1) / 2)
    with pytest.raises(ValueError, match="two classes"):
        macro_auc(np.array([0, 0, 0]), p)


def test_every_resample_has_the_auc_of_its_images_repeated():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 40), [f"family {i // 2}" for i in range(40)]
    p = rng.integers(1, 5, (40, 3)) / 10  # few values: ties
    weights = group_weights(groups, 20, seed=1)
    for value, row in zip(weighted_macro_auc(labels, p, weights), weights.astype(int), strict=True):
        again = np.repeat(np.arange(40), row)
        one_vs_rest = [roc_auc_score(labels[again] == k, p[again, k]) for k in sorted(set(labels[again]))]
        assert value == pytest.approx(np.mean(one_vs_rest))


def test_resamples_draw_whole_groups_and_as_many_as_there_are():
    groups = ["a", "b", "a", "c", "c", "c"]
    weights = group_weights(groups, 50, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert (group_weights(groups, 50, seed=0) == weights).all()


def normal_scores(rng, n, distance):
    labels = np.repeat([0, 1], n)
    score = rng.normal(labels * distance)
    return labels, np.stack([-score, score], axis=1)


def test_the_interval_of_independent_images_holds_the_true_auc_about_95_times_in_100():
    """Binormal scores a distance d apart have the AUC Phi(d / sqrt 2)."""
    rng, distance = np.random.default_rng(0), 1.0
    true = 0.5 * (1 + math.erf(distance / 2))
    held = 0
    for trial in range(200):
        labels, p = normal_scores(rng, 40, distance)
        weights = group_weights([str(i) for i in range(80)], 300, seed=trial)
        found = interval(macro_auc(labels, p), weighted_macro_auc(labels, p, weights))
        held += found.low <= true <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_images_that_come_in_copies_widen_the_interval_by_the_root_of_their_number():
    labels, p = normal_scores(np.random.default_rng(3), 60, 1.0)
    copies = np.repeat(np.arange(120), 4)
    alone = weighted_macro_auc(labels, p, group_weights([str(i) for i in range(120)], 4000, 0))
    by_image = weighted_macro_auc(labels[copies], p[copies], group_weights([str(i) for i in range(480)], 4000, 0))
    by_group = weighted_macro_auc(labels[copies], p[copies], group_weights([str(i) for i in copies], 4000, 0))
    assert by_group.std() == pytest.approx(alone.std(), rel=0.05)
    assert by_image.std() == pytest.approx(alone.std() / 2, rel=0.1)


def test_sensitivity_and_specificity_are_shares_by_hand():
    labels = np.array([1, 1, 1, 0, 2])
    p = np.eye(3)[[1, 0, 1, 1, 2]]
    assert sensitivity_specificity(labels, p, 1) == pytest.approx((2 / 3, 1 / 2))


def result(arm, seed, labels, probabilities):
    test = {
        "sha256": [f"{i:064x}" for i in range(len(labels))],
        "group": [f"g{i // 2}" for i in range(len(labels))],
        "label": [CLASSES[k] for k in labels],
        "probabilities": probabilities.tolist(),
    }
    return {"arm": arm, "seed": seed, "classes": CLASSES, "trained_on": {"benign": 7}, "predictions": {"t": test}}


def make_arms(*names):
    return [Arm(name, name, "train", "", 0.0, ("t",), names[0]) for name in names]


def test_equal_predictions_differ_by_nothing_and_better_ones_by_a_paired_interval_above_0():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    noise = rng.random((60, 3))
    better = noise.copy()
    better[np.arange(60), labels] += 0.6
    results = {(name, s): result(name, s, labels, p) for s in (0, 1) for name, p in
               {"real": noise, "same": noise, "better": better}.items()}  # fmt: skip
    rows = make_rows(make_arms("real", "same", "better"), (0, 1), results, resamples=500)
    mean = {row.arm: row for row in rows if row.seed is None}
    assert mean["real"].difference is None
    assert tuple(mean["same"].difference) == (0.0, 0.0, 0.0)
    expected = macro_auc(labels, better) - macro_auc(labels, noise)
    assert mean["better"].difference.value == pytest.approx(expected)
    assert 0 < mean["better"].difference.low < expected < mean["better"].difference.high
    assert mean["real"].classes == ("benign", "malignant")
    assert len(rows) == 3 * (1 + 2)
    assert to_csv(rows).splitlines()[1].startswith("t,real,mean,60,30,benign malignant,7,")
    assert cells(rows, "t")[0][3] == " ".join([f"{macro_auc(labels, noise):.3f}"] * 2)
    assert "1 of 2 differences have an interval that holds 0" in " ".join(cautions(rows, "own"))


def test_the_mean_of_seeds_is_the_mean_of_their_aucs():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 10)
    p = [rng.random((30, 3)) for _ in range(3)]
    results = {("real", s): result("real", s, labels, p[s]) for s in range(3)}
    rows = make_rows(make_arms("real"), (0, 1, 2), results, resamples=200)
    assert rows[0].auc.value == pytest.approx(np.mean([macro_auc(labels, one) for one in p]))
    assert [row.auc.value for row in rows[1:]] == [pytest.approx(macro_auc(labels, one)) for one in p]


def test_classifiers_that_saw_different_test_images_are_not_compared():
    labels, p = np.repeat([0, 1], 4), np.random.default_rng(0).random((8, 3))
    results = {("real", 0): result("real", 0, labels, p), ("other", 0): result("other", 0, labels, p)}
    results["other", 0]["predictions"]["t"]["sha256"][0] = "f" * 64
    with pytest.raises(ValueError, match="different images"):
        make_rows(make_arms("real", "other"), (0,), results, resamples=200)
