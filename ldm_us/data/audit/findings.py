"""Audit datasets: what is in their files, what cannot be used, what looks alike, and how train.py would split them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm_us.data.audit.summary import SIDE, Coverage, measured
from ldm_us.data.near_duplicates import families, merge_groups, near_duplicates
from ldm_us.data.opening import open_image, open_mask
from ldm_us.data.readers.bus_uclm import lesions_of_mask
from ldm_us.data.readers.busi import families as listed_families
from ldm_us.data.readers.datasets import Reading, check_folders, read_whole
from ldm_us.data.records import BUSI_GROUP, Record, union_of_masks
from ldm_us.data.split import SPLIT_SEED, mixed_groups, split_by_group
from ldm_us.data.structure import MaskFile, file_of

FINDINGS = {  # what an audit calls its lists of file names
    "several_masks": "images with several masks (OR-ed)",
    "normal_with_lesion": "images of a class without a structure (normal) with a non-empty mask",
    "both_lesions": "images with benign and malignant lesions (taken as malignant)",
    "other_size": "CANNOT BE USED, mask size differs from the image",
}


@dataclass
class Audit:
    """What was found in one dataset."""

    reading: Reading
    records: list[Record] = field(default_factory=list)  # those whose image opens
    covered: list[Coverage] = field(default_factory=list)  # what masks cover, of images that may show something
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    image_modes: Counter[str] = field(default_factory=Counter)
    mask_modes: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in FINDINGS})
    unreadable: list[str] = field(default_factory=list)  # whole sentences; cannot be used either

    @property
    def usable(self) -> bool:
        """Say whether every file can be used for training."""
        return not (self.unreadable or self.found["other_size"])


def audit_folder(folder: Path) -> Audit:
    """Open every file of a dataset and collect the findings. ValueError: no dataset, or its reader refuses it."""
    audit = Audit(read_whole(folder))
    records = audit.reading.records
    for record in tqdm(records, desc=f"opening {Path(folder).name}", unit="image", delay=1):
        audit_files(record, audit)
    if audit.reading.layout == "BUS-UCLM":
        audit.found["both_lesions"] = [r.image.name for r in records if len(lesions_of_mask(file_of(r.masks[0]))) > 1]
    return audit


def audit_files(record: Record, audit: Audit) -> None:
    """Open one image and its masks, and note what is odd about them."""
    picture = open_or_note(open_image, record.image, audit)
    if picture is not None:
        audit.records.append(record)
        audit.image_sizes[picture.size] += 1
        audit.image_modes[picture.mode] += 1
    masks = [(path, open_or_note(open_mask, path, audit)) for path in record.masks]
    for path, mask in masks:
        if mask is not None:
            audit.mask_modes[mask.mode] += 1
        if mask is not None and picture is not None and mask.size != picture.size:
            sizes = f"{mask.width}x{mask.height}, image {picture.width}x{picture.height}"
            audit.found["other_size"].append(f"{path.name} ({sizes})")
    if len(masks) > 1:
        audit.found["several_masks"].append(f"{record.image.name} ({len(masks)})")
    if all(mask is not None for _, mask in masks):
        audit_mask_content(record, audit)


def open_or_note(opened: Callable[[Any], Image.Image], path: MaskFile, audit: Audit) -> Image.Image | None:
    """Open an image or a mask, or note why it does not open."""
    try:
        return opened(path)
    except ValueError as error:
        audit.unreadable.append(str(error))
        return None


def audit_mask_content(record: Record, audit: Audit) -> None:
    """Compare what the masks show with what the class says."""
    name, masks = record.image.name, []
    if not record.masks or record.organ.hint_is_picture:
        return
    for path in record.masks:  # one at a time: masks of different sizes are reported elsewhere
        try:
            union = union_of_masks([path])
        except ValueError as error:  # it opens, but what is lesion in it cannot be decided
            audit.unreadable.append(str(error))
            return
        assert union is not None
        masks.append(np.asarray(union))
    drawn = any(bool(mask.any()) for mask in masks)
    if record.shows is not False and len({mask.shape for mask in masks}) == 1:
        audit.covered.append(measured(name, Image.fromarray(np.maximum.reduce(masks)), SIDE))
    if record.shows is False and drawn:
        audit.found["normal_with_lesion"].append(name)


@dataclass
class Families:
    """Groups and near-duplicate families of one dataset."""

    groups: Counter[str]  # patients, cases and known families: images by name
    families: list[list[Record]]  # of two images or more
    not_listed: list[str]  # images of BUSI that the shipped list does not know
    listed: int  # families of BUSI's shipped list with two images here
    found_again: int  # those of them that comparing the images gives exactly


@dataclass
class GroupAudit:
    """Families within each dataset and across them, and the split of all images together."""

    of_folder: list[Families]
    crossing: list[list[Record]]  # families with images of two datasets or more
    train: Counter[str]  # images by class
    held_out: Counter[str]
    mixed: int  # groups with images of several classes


def audit_groups(audits: Sequence[Audit], held_out: float) -> GroupAudit:
    """Compare the images of all datasets, once, and split them as train.py would with these folders.

    ValueError: two folders hold the same files.
    """
    check_folders([audit.reading.folder for audit in audits], [audit.reading.records for audit in audits])
    records = [record for audit in audits for record in audit.records]
    owner = [nth for nth, audit in enumerate(audits) for _ in audit.records]
    pairs = near_duplicates(records)
    merged = merge_groups(records, pairs)
    train, test = split_by_group(merged, held_out, SPLIT_SEED)
    of_folder, start = [], 0
    for nth, audit in enumerate(audits):
        inside = [(i - start, j - start) for i, j in pairs if owner[i] == owner[j] == nth]
        of_folder.append(families_of(audit.records, inside))
        start += len(audit.records)
    crossing = [[records[i] for i in one] for one in families(records, pairs) if len({owner[i] for i in one}) > 1]
    in_train, in_test = (Counter(record.label for record in side) for side in (train, test))
    return GroupAudit(of_folder, crossing, in_train, in_test, mixed_groups(merged))


def families_of(records: Sequence[Record], pairs: Sequence[tuple[int, int]]) -> Families:
    """Collect the families of one dataset, and compare BUSI's list with what the images say."""
    listed: dict[str, list[int]] = {}
    not_listed = []
    for i, record in enumerate(records):
        if record.group.startswith(BUSI_GROUP):
            listed.setdefault(record.group, []).append(i)
            if record.image.stem not in listed_families():
                not_listed.append(record.image.name)
    known = {tuple(members) for members in listed.values() if len(members) > 1}
    nameless = [replace(record, group="") for record in records]  # joined by the pairs alone
    return Families(
        groups=Counter(record.group for record in records),
        families=[[records[i] for i in family] for family in families(records, pairs)],
        not_listed=not_listed,
        listed=len(known),
        found_again=len(known & {tuple(family) for family in families(nameless, pairs)}),
    )
