"""Plans: who is sampled, in which order, with which seed, under which name."""

from collections import Counter
from itertools import islice

import pytest

from ldm_us.data.organ import BREAST
from ldm_us.data.words import Words, words_in
from ldm_us.synthesis.plan import class_counts, make_plan

OPTIONS = {"n": 3, "seed": 10, "balance": None, "layout": "flat", "words": words_in("m", {})}


def plan(labels=(), prompt=None, mask=None, **options):
    return make_plan(list(labels), prompt, mask, **(OPTIONS | options))


def test_without_balance_every_subject_has_the_same_n_seeds_to_compare():
    samples = list(plan())
    assert [sample.number for sample in samples] == list(range(9))
    assert [sample.seed for sample in samples] == [10, 11, 12] * 3
    assert samples[4].file_name == "0001_malignant_seed11.png"
    assert plan().last_seed == 12


def test_shares_become_counts_that_sum_to_n():
    assert class_counts((2, 1, 1), 10, BREAST.classes) == (5, 3, 2)
    assert class_counts((1, 1, 1), 1000, BREAST.classes) == (334, 333, 333)
    assert class_counts((437, 210, 133), None, BREAST.classes) == (437, 210, 133)
    assert class_counts((0, 1, 0), 5, BREAST.classes) == (0, 5, 0)


def test_a_balanced_plan_has_its_shares_at_every_moment_and_a_seed_for_each_sample():
    balanced = plan(balance=(2, 1, 1), n=400)
    assert Counter(sample.subject.label for sample in balanced) == {"benign": 200, "malignant": 100, "normal": 100}
    assert Counter(sample.subject.label for sample in islice(balanced, 40))["benign"] == 20
    assert [sample.seed for sample in balanced] == list(range(10, 410))
    assert balanced.last_seed == 409


def test_several_samples_share_a_mask_of_their_own_class_in_turn(masks):
    for sample in (samples := list(plan(mask=masks, balance=(1, 1, 1), n=12))):
        assert all(path.parent.name == sample.subject.label for path in sample.subject.masks)
        assert sample.subject.prompt == f"Ultrasound image of a {sample.subject.label} breast"
    uses = Counter(sample.subject.masks for sample in samples if sample.subject.masks)
    assert sorted(uses.values()) == [2, 2, 2, 2]
    assert sum(not sample.subject.masks for sample in samples) == 4


def test_the_shares_of_a_model_of_other_classes_are_in_the_order_of_its_classes():
    thyroid = Words("t", {"benign": {"a thyroid": 3}, "cyst": {"a cyst": 2}}, frozenset(), True)
    mixed = plan(balance=(3, 1), n=8, words=thyroid)
    assert Counter(sample.subject.prompt for sample in mixed) == {"a thyroid": 6, "a cyst": 2}
    with pytest.raises(ValueError, match=r"--balance 1 1 1: give 2 numbers, in this order: benign, cyst\."):
        plan(balance=(1, 1, 1), words=thyroid)
    with pytest.raises(ValueError, match="--balance: sd15 has no classes"):
        plan(balance=(1, 1, 1), words=words_in("sd15", {"stage": "import"}))


def test_three_shares_still_mean_the_classes_of_the_breast_for_a_model_that_was_taught_two_of_them():
    lesions = Words("t", {"benign": {"b": 3}, "malignant": {"m": 2}}, frozenset(), True)
    assert plan(balance=(2, 1, 0), n=6, words=lesions).counts == (4, 2, 0)
    assert plan(balance=(2, 1), n=6, words=lesions).counts == (4, 2)
    with pytest.raises(ValueError, match="--balance 2 1 1: give 2 numbers, in this order: benign, malignant"):
        plan(balance=(2, 1, 1), n=6, words=lesions)


def test_the_layout_of_busi_numbers_every_class_from_1():
    names = [(sample.file_name, sample.mask_name) for sample in plan(layout="busi", n=2)]
    assert names[:2] == [("benign/benign (1).png", None), ("benign/benign (2).png", None)]
    assert names[5] == ("normal/normal (2).png", "normal/normal (2)_mask.png")


def test_a_plan_of_a_billion_samples_is_walked_and_not_listed():
    huge = plan(balance=(1, 1, 1), n=10**9)
    assert huge.total == 10**9
    assert [sample.number for sample in islice(huge, 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"balance": (1, -1, 1)}, "--balance 1 -1 1: use numbers of 0 or more"),
        ({"balance": (0, 0, 0)}, "not all 0"),
        ({"balance": (1, float("nan"), 1)}, "--balance 1 nan 1"),
        ({"balance": (0.5, 0.5, 0), "n": None}, "without --n these are counts"),
        ({"balance": (1, 1, 1), "labels": ["benign"]}, "leave --class and --prompt away"),
        ({"prompt": "a liver", "layout": "busi"}, "--layout busi: prompt has no class"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(**options)


def test_a_class_without_masks_is_named(masks):
    with pytest.raises(ValueError, match="no mask of class malignant"):
        plan(mask=masks / "benign", balance=(1, 1, 0))
