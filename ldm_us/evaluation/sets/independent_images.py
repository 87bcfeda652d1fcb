"""Images that a test may count as independent: one of each family of near-duplicates, case or patient."""

from collections.abc import Sequence
from dataclasses import dataclass

from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.records import UNKNOWN, Record


@dataclass(frozen=True)
class Independent:
    """What is left of a set."""

    records: list[Record]  # the first of each family
    images: int  # in the whole set
    mixed: int  # families left out because their images have different classes


def one_per_family(records: Sequence[Record]) -> Independent:
    """Keep the first image of each group, near-duplicates joined; a group of two classes has no class and is left out.

    Samples of one mask are a group too. Opens every image once.
    """
    return one_per_group(merge_families(records))


def one_per_group(records: Sequence[Record]) -> Independent:
    """The same of records whose near-duplicates are in one group already."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record.group, []).append(record)
    pure = [family for family in families.values() if len({record.label for record in family}) == 1]
    return Independent([family[0] for family in pure], len(records), len(families) - len(pure))


def shared_classes(first: Sequence[Record], second: Sequence[Record]) -> set[str]:
    """The classes that both sets hold; all classes where a set has images of an unknown class.

    Raise ValueError where there are none: benign images differ from malignant ones, whoever drew them.
    """
    labels = [{record.label for record in records} for records in (first, second)]
    if any(UNKNOWN in one for one in labels):
        return labels[0] | labels[1]
    if not labels[0] & labels[1]:
        named = [", ".join(sorted(one)) for one in labels]
        raise ValueError(
            f"--generated: holds the classes {named[1]}, but --real {named[0]}. Compare images of the same classes."
        )
    return labels[0] & labels[1]
