"""Split records into training and held-out ones, whole groups at a time: no near-duplicate stands on both sides."""

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

from ldm_us.data.records import Record

SPLIT_SEED = 0  # of every split: a model's held-out images can be found again from --held-out alone


def split_by_group(records: Iterable[Record], held_out: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split into (train, held out), both sorted: the result depends on the set of records and the seed alone.

    Every label gives about held_out of its records, in whole groups: at least one group and never all of them. A label
    with a single group stays in training, and so does every group whose records disagree about the label. Only where
    nothing could be held out so, because no group has one label alone, are groups of several labels held out.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"Held-out fraction {held_out}: must be at least 0 and below 1. Use for example 0.2.")
    records = sorted(records)
    labels = labels_of_groups(records)
    chosen: set[str] = set()
    for label in sorted({record.label for record in records}):
        sizes = Counter(record.group for record in records if record.label == label)  # of mixed groups too
        pure = {group: n for group, n in sizes.items() if len(labels[group]) == 1}
        if held_out > 0 and len(sizes) >= 2:
            spare = len(pure) < len(sizes)  # a mixed group keeps the label in training
            chosen |= choose_groups(pure, held_out * sum(sizes.values()), len(pure) - (not spare), seed)
    if held_out > 0 and not chosen:
        mixed = Counter(record.group for record in records if len(labels[record.group]) > 1)
        chosen = choose_groups(mixed, held_out * len(records), len(mixed) - 1, seed)
    train = [record for record in records if record.group not in chosen]
    return train, [record for record in records if record.group in chosen]


def mixed_groups(records: Iterable[Record]) -> int:
    """Count the groups whose records carry several labels, such as patients with images of two classes."""
    return sum(len(labels) > 1 for labels in labels_of_groups(records).values())


def labels_of_groups(records: Iterable[Record]) -> dict[str, set[str]]:
    """Collect the labels that the records of each group carry; more than one is a conflict."""
    labels: dict[str, set[str]] = {}
    for record in records:
        labels.setdefault(record.group, set()).add(record.label)
    return labels


def choose_groups(sizes: dict[str, int], wanted: float, most: int, seed: int) -> set[str]:
    """Choose 1..most groups that hold about `wanted` records, in the order of their hashes."""
    order = sorted(sizes, key=lambda group: sha256(f"{seed}:{group}".encode()).digest())
    chosen: set[str] = set()
    taken = 0
    for group in order:
        if len(chosen) < most and taken + sizes[group] / 2 <= wanted:  # closer to `wanted` with the group than without
            chosen.add(group)
            taken += sizes[group]
    if not chosen and most > 0:
        chosen.add(min(order, key=lambda group: sizes[group]))
    return chosen
