"""Splits: whole groups, the same for every order of the records, near the wanted fraction of every label."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ldm_us.data.records import Record
from ldm_us.data.split import mixed_groups, split_by_group

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=60)
FRACTIONS = st.floats(0, 0.99)
SEEDS = st.integers(0, 2**32)


def make(pairs: list[tuple[str, int]]) -> list[Record]:
    """Build one record a (label, group) pair."""
    return [Record(Path(f"{i}.png"), (), label, "", f"g{group}") for i, (label, group) in enumerate(pairs)]


def groups(records: list[Record]) -> set[str]:
    return {record.group for record in records}


@given(PAIRS, FRACTIONS, SEEDS)
def test_every_record_is_on_one_side_and_no_group_is_on_both(pairs, held_out, seed):
    records = make(pairs)
    train, test = split_by_group(records, held_out, seed)
    assert sorted(train + test) == sorted(records)
    assert not groups(train) & groups(test)


@given(PAIRS, FRACTIONS, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(pairs, held_out, seed, shuffler):
    records = make(pairs)
    expected = split_by_group(records, held_out, seed)
    shuffler.shuffle(records)
    assert split_by_group(records, held_out, seed) == expected


@given(PAIRS, FRACTIONS, SEEDS)
def test_groups_with_conflicting_labels_are_held_out_only_where_no_other_group_is(pairs, held_out, seed):
    _, test = split_by_group(make(pairs), held_out, seed)
    mixed = {f"g{group}" for _, group in pairs if len({label for label, other in pairs if other == group}) > 1}
    assert groups(test) <= mixed or not groups(test) & mixed
    assert mixed_groups(make(pairs)) == len(mixed)


def test_patients_who_all_have_images_of_both_classes_are_split_all_the_same():
    records = make([(label, patient) for patient in range(10) for label in "ab"])
    train, test = split_by_group(records, 0.2, 0)
    assert (len(train), len(test), len(groups(test))) == (16, 4, 2)
    assert not groups(train) & groups(test)
    assert split_by_group(make([(label, 0) for label in "ab"]), 0.2, 0)[1] == [], "one patient stays in training"


@given(PAIRS, st.floats(1e-9, 0.99), SEEDS)
def test_a_label_with_two_groups_is_on_both_sides(pairs, held_out, seed):
    pure = [(label, 10 * ord(label) + group) for label, group in pairs]  # no group has two labels
    train, test = split_by_group(make(pure), held_out, seed)
    for label in {label for label, _ in pure}:
        n = len({group for other, group in pure if other == label})
        assert label in {record.label for record in train}
        assert (label in {record.label for record in test}) == (n >= 2)


@given(st.integers(20, 200), st.floats(0.05, 0.95), SEEDS)
def test_each_label_gives_its_fraction_when_every_record_is_its_own_group(n, held_out, seed):
    records = make([("a", i) for i in range(n)] + [("b", n + i) for i in range(3 * n)])
    counts = Counter(record.label for record in split_by_group(records, held_out, seed)[1])
    assert abs(counts["a"] - held_out * n) <= 1
    assert abs(counts["b"] - held_out * 3 * n) <= 1


@given(st.lists(st.integers(1, 6), min_size=8, max_size=30), st.floats(0.2, 0.8), SEEDS)
def test_the_fraction_is_met_to_within_half_the_largest_group(sizes, held_out, seed):
    records = make([("a", group) for group, n in enumerate(sizes) for _ in range(n)])
    wanted = held_out * len(records)
    assume(
        max(sizes) / 2 < wanted < len(records) - max(sizes) / 2
    )  # else the one group that each side must have decides
    _, test = split_by_group(records, held_out, seed)
    assert abs(len(test) - wanted) <= max(sizes) / 2


def test_another_seed_holds_out_other_groups():
    records = make([("a", i) for i in range(40)])
    assert groups(split_by_group(records, 0.5, 0)[1]) != groups(split_by_group(records, 0.5, 1)[1])


def test_the_split_is_the_same_in_every_process_and_wherever_the_files_lie():
    """The numbers are groups g0..g9 ordered by sha256 of 'seed:group', computed with sha256sum in a shell."""
    near = make([("a", i) for i in range(10)])
    far = [Record(Path("/elsewhere") / r.image, r.masks, r.label, r.prompt, r.group) for r in random.sample(near, 10)]
    assert groups(split_by_group(near, 0.3, 7)[1]) == groups(split_by_group(far, 0.3, 7)[1]) == {"g2", "g9", "g1"}


def test_a_fraction_of_zero_holds_out_nothing():
    records = make([("a", i) for i in range(5)])
    assert split_by_group(records, 0, 0) == (records, [])


def test_no_records_split_into_nothing():
    assert split_by_group([], 0.5, 0) == ([], [])


@pytest.mark.parametrize("held_out", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(held_out):
    with pytest.raises(ValueError, match="Held-out fraction"):
        split_by_group([], held_out, 0)
