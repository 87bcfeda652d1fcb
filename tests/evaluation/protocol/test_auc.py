"""AUC, its resamples and the tables of the protocol, against counts by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ldm_us.evaluation.auc import macro_auc
from ldm_us.evaluation.protocol.arms import Arm
from ldm_us.evaluation.protocol.classifier import ClassifierConfig
from ldm_us.evaluation.protocol.intervals import group_weights
from ldm_us.evaluation.protocol.page import cautions, say_passes
from ldm_us.evaluation.protocol.tables import cells, make_rows, sensitivity_specificity, to_csv

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
    labels, groups = np.repeat(rng.integers(0, 3, 20), 2), [f"family {i // 2}" for i in range(40)]
    p = rng.integers(1, 5, (40, 3)) / 10  # few values: ties
    weights = group_weights(groups, labels, 20, seed=1)
    for value, row in zip(macro_auc(labels, p, weights), weights.astype(int), strict=True):
        again = np.repeat(np.arange(40), row)
        one_vs_rest = [roc_auc_score(labels[again] == k, p[again, k]) for k in sorted(set(labels[again]))]
        assert value == pytest.approx(np.mean(one_vs_rest))


def test_resamples_draw_whole_groups_of_every_class_one_fewer_than_there_are():
    groups, labels = ["a", "b", "a", "c", "d", "d", "e"], np.array([0, 0, 0, 1, 1, 1, 0])
    weights = group_weights(groups, labels, 50, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 6]].sum(axis=1) == 2).all()
    assert (weights[:, [3, 4]].sum(axis=1) == 1).all()
    assert (group_weights(groups, labels, 50, seed=0) == weights).all()


def normal_scores(rng, n, distance):
    labels = np.repeat([0, 1], n)
    score = rng.normal(labels * distance)
    return labels, np.stack([-score, score], axis=1)


def test_images_that_come_in_copies_widen_the_interval_by_the_root_of_their_number():
    labels, p = normal_scores(np.random.default_rng(3), 60, 1.0)
    copies = np.repeat(np.arange(120), 4)

    def resampled(of, groups):
        return macro_auc(labels[of], p[of], group_weights([str(g) for g in groups], labels[of], 4000, 0))

    alone, by_image = resampled(np.arange(120), range(120)), resampled(copies, range(480))
    by_group = resampled(copies, copies)
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
    mean = {row.arm.name: row for row in rows if row.seed is None}
    assert mean["real"].difference is None
    assert mean["same"].difference.low < mean["same"].difference.value == 0 < mean["same"].difference.high
    expected = macro_auc(labels, better) - macro_auc(labels, noise)
    assert mean["better"].difference.value == pytest.approx(expected)
    assert 0 < mean["better"].difference.low < expected < mean["better"].difference.high
    assert mean["real"].test.present == ("benign", "malignant")
    assert len(rows) == 3 * (1 + 2)
    assert to_csv(rows).splitlines()[1].startswith("t,real,mean,60,30,benign malignant,7,")
    assert cells(rows, rows[0].test)[0][3] == " ".join([f"{macro_auc(labels, noise):.3f}"] * 2)
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


def test_cautions_name_few_families_one_split_and_the_images_that_choose():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], [40, 18])
    results = {("real", 0): result("real", 0, labels, rng.random((58, 3)))}
    said = " ".join(cautions(make_rows(make_arms("real"), (0,), results, resamples=200), "own"))
    assert "A class of 't' has 9 families alone" in said
    assert "One split, one generator" in said
    assert "images that choose a classifier's epoch are split off from what the generator was trained on" in said
    labels = np.repeat([0, 1], [40, 20])
    results = {("real", 0): result("real", 0, labels, rng.random((60, 3)))}
    assert "families alone" not in " ".join(cautions(make_rows(make_arms("real"), (0,), results, 200), "own"))


def test_passes_over_real_images_are_the_images_seen_a_training_image():
    arms = [*make_arms("real", "both"), Arm("alone", "alone", "", "generated", 1.0, ("t",), "real")]
    images = {"real": {"benign": 80}, "both": {"benign": 100, "normal": 60}, "alone": {"benign": 80}}
    results = {(name, s): {"steps": 100, "trained_on": of} for name, of in images.items() for s in (0, 1)}
    said = say_passes(arms, (0, 1), results, ClassifierConfig(batch=8))
    assert said.endswith("Passes over each real image: 'real' 10, 'both' 5.")
    assert "(equal_steps)" in said
    assert "equal_steps is off" in say_passes(arms, (0, 1), results, ClassifierConfig(batch=8, equal_steps=False))
