"""Audit the groups of datasets: near-duplicate families in and across them, and the split that train.py would make."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ldm_us.data.audit.findings import Audit
from ldm_us.data.near_duplicates import families, merge_groups, near_duplicates
from ldm_us.data.readers.busi import BUSI_GROUP
from ldm_us.data.readers.busi import families as listed_families
from ldm_us.data.records import Record
from ldm_us.data.split import SPLIT_SEED, split_by_group


@dataclass
class Families:
    """Groups and near-duplicate families of one dataset."""

    groups: Counter[str] = field(default_factory=Counter)  # patients, cases and known families: images by name
    families: list[list[Record]] = field(default_factory=list)  # of two images or more
    not_listed: list[str] = field(default_factory=list)  # images of BUSI that the shipped list does not know
    listed: int = 0  # families of BUSI's shipped list with two images here
    found_again: int = 0  # those of them that comparing the images gives exactly

    @property
    def mixed(self) -> list[list[Record]]:
        """Families whose images disagree about the class."""
        return [family for family in self.families if len({record.label for record in family}) > 1]


@dataclass
class GroupAudit:
    """Families within each dataset and across them, and the split of all images together."""

    of_folder: list[Families]
    crossing: list[list[Record]]  # families with images of two datasets or more
    train: Counter[str]  # images by class
    held_out: Counter[str]


def audit_groups(audits: Sequence[Audit], held_out: float) -> GroupAudit:
    """Compare the images of all datasets, once, and split them as train.py would with these folders."""
    records = [record for audit in audits for record in audit.records]
    owner = [nth for nth, audit in enumerate(audits) for _ in audit.records]
    pairs = near_duplicates(records)
    train, test = split_by_group(merge_groups(records, pairs), held_out, SPLIT_SEED)
    of_folder, start = [], 0
    for audit in audits:
        end = start + len(audit.records)
        inside = [(i - start, j - start) for i, j in pairs if start <= i and j < end]
        of_folder.append(families_of(audit.records, inside))
        start = end
    crossing = [[records[i] for i in one] for one in families(records, pairs) if len({owner[i] for i in one}) > 1]
    return GroupAudit(of_folder, crossing, count_classes(train), count_classes(test))


def families_of(records: Sequence[Record], pairs: Sequence[tuple[int, int]]) -> Families:
    """Collect the families of one dataset, and compare BUSI's list with what the images say."""
    found = Families(Counter(record.group for record in records))
    found.families = [[records[i] for i in family] for family in families(records, pairs)]
    of_busi = [i for i, record in enumerate(records) if record.group.startswith(BUSI_GROUP)]
    found.not_listed = [records[i].image.name for i in of_busi if records[i].image.stem not in listed_families()]
    listed: dict[str, list[int]] = {}
    for i in of_busi:
        listed.setdefault(records[i].group, []).append(i)
    known = {tuple(members) for members in listed.values() if len(members) > 1}
    nameless = [replace(record, group="") for record in records]  # joined by the pairs alone
    found.listed = len(known)
    found.found_again = len(known & {tuple(family) for family in families(nameless, pairs)})
    return found


def count_classes(records: Sequence[Record]) -> Counter[str]:
    """Count images by class."""
    return Counter(record.label for record in records)
