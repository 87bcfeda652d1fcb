"""Which images are trained on and which are tested on: whole families on one side, everywhere.

The held-out share is that of train.py, from the same function, so a classifier is tested on images that no generator
has seen. A family whose images disagree about the class is never tested on, and neither is an external image that is a
near-duplicate of one of the data.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.organ import BREAST, UNKNOWN
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import Record
from ldm_us.data.split import labels_of_groups
from ldm_us.evaluation.protocol.configuration import ProtocolConfig
from ldm_us.evaluation.sets.evaluated_images import seen_folders, seen_records
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import DIGESTS, read_lineage
from ldm_us.training.dataset import data_hash, split_data

HELD_OUT, OWN, OTHERS = "held-out", "small generator's own images", "small generator's unseen images"  # test sets
LEAST_GROUPS = 2  # of a class in a test set: a bootstrap of one is no bootstrap


@dataclass(frozen=True)
class Split:
    """The images of a protocol: those of the given classes, with their near-duplicate families as groups."""

    train: list[Record]
    small_train: list[Record]  # of the second experiment; empty without it
    tests: dict[str, list[Record]]  # by name
    digests: dict[str, str]  # of every part, images and masks, as train.py computes them
    labels: tuple[str, ...]  # the classes of the training images in the order of --balance, of all that there are
    notes: list[str]  # what was left out


def split_images(config: ProtocolConfig) -> Split:
    """Read, split and check all data of a protocol. Raise ValueError for what leaks or is too little to measure."""
    folders = [Path(folder) for folder in config.data]
    train, held_out = split_data(folders, config.held_out)
    labels = check_classes(config, train)
    notes: list[str] = []
    digests = {"train": data_hash(train), HELD_OUT: data_hash(held_out)}
    tests = {HELD_OUT: held_out}
    small_train: list[Record] = []
    if config.small is not None:
        small_train, others = split_data(folders, config.small.held_out)
        digests["small train"] = data_hash(small_train)
        tests |= {OWN: small_train, OTHERS: others}
        check_disjoint(small_train, others, OTHERS)
    check_disjoint(train, held_out, HELD_OUT)
    for name, paths in config.external.items():
        if name in (HELD_OUT, OWN, OTHERS):
            raise ValueError(f"external.{name}: the name of another test set. Choose another.")
        external = read_datasets([Path(path) for path in paths])
        tests[name] = external_set(name, [*train, *held_out], external)
        digests[name] = data_hash(tests[name])
        if left_out := len(external) - len(tests[name]):
            notes.append(f"{name}: {left_out} of {len(external)} images are left out, near-duplicates of the data.")
    tests = {name: measurable(records, config.classes) for name, records in tests.items()}
    for name, records in tests.items():
        check_testable(name, records, config.classes if name not in config.external else ())
    known = [record for record in train if record.label in config.classes]
    if len(known) < len(train):
        notes.append(f"{len(train) - len(known)} training images are of none of the classes: no classifier sees them.")
    return Split(known, [r for r in small_train if r.label in config.classes], tests, digests, labels, notes)


def check_classes(config: ProtocolConfig, train: Sequence[Record]) -> tuple[str, ...]:
    """The classes that a model of these images has. Raise ValueError for one of the configuration without an image."""
    known = tuple(sorted({record.label for record in train} - {UNKNOWN}))
    for label in config.classes:
        if label not in known:
            near = difflib.get_close_matches(label, known, 1)
            raise ValueError(
                f"classes: no image to train on is {label}, they are {', '.join(known) or 'of no class'}. "
                f"{f'Write {near[0]!r}' if near else 'Give two or more of these'}: `classes` is what is told apart."
            )
    return BREAST.classes if set(known) < set(BREAST.classes) else known  # as sample.py --balance has them


def measurable(records: Sequence[Record], classes: Sequence[str]) -> list[Record]:
    """Those of a class, of families that agree about it."""
    labels = labels_of_groups(records)
    return [record for record in records if record.label in classes and len(labels[record.group]) == 1]


def external_set(name: str, data: Sequence[Record], external: Sequence[Record]) -> list[Record]:
    """Leave out groups with a near-duplicate of the data."""
    merged = merge_families([*data, *external])
    known = {record.group for record in merged[: len(data)]}
    kept = [record for record in merged[len(data) :] if record.group not in known]
    digests = {sha256_file(record.image) for record in data}  # of phantoms, which are not compared, copies count
    kept = [record for record in kept if sha256_file(record.image) not in digests]
    if not kept:
        raise ValueError(
            f"external.{name}: all {len(external)} images are near-duplicates of the data, so nothing in it is "
            "external. Give another set."
        )
    return kept


def check_disjoint(train: Sequence[Record], test: Sequence[Record], name: str) -> None:
    """Raise ValueError where a family or an image stands on both sides."""
    shared = {record.group for record in train} & {record.group for record in test}
    if shared:
        raise ValueError(
            f"{name}: {len(shared)} families are trained on and tested on ({min(shared)}). Split whole families."
        )
    digests = {sha256_file(record.image): record.image for record in train}
    for record in test:
        known = digests.get(sha256_file(record.image))
        if known is not None:
            raise ValueError(f"{name}: {record.image} is, byte for byte, the training image {known}. Remove one.")


def check_testable(name: str, records: Sequence[Record], needed: Sequence[str]) -> None:
    """Refuse a test set that is too small for an AUC with an interval; `needed` classes must be in it."""
    groups: dict[str, set[str]] = {label: set() for label in needed}
    for record in records:
        groups.setdefault(record.label, set()).add(record.group)
    few = sorted(label for label, of_label in groups.items() if len(of_label) < LEAST_GROUPS)
    if few or len(groups) < 2:
        counted = ", ".join(f"{label} {len(of_label)}" for label, of_label in sorted(groups.items())) or "none"
        raise ValueError(
            f"the test set {name!r} has too few images: families that can be tested on are {counted}; an AUC with an "
            f"interval needs {LEAST_GROUPS} of each of two classes or more. Give more images, or hold more out."
        )


def check_lineage(weights: Path, folders: Sequence[Path], train_sha256: str) -> None:
    """Refuse a model of which a stage was trained on another split of the data: it may know the images held out.

    A stage without digests of its images is known by the names of its folders; check_start looks into all others.
    """
    names = {folder.resolve().name for folder in folders}
    for entry in read_lineage(read_metadata(weights)).entries:
        if DIGESTS in entry or entry.get("data_sha256") == train_sha256:
            continue
        if names & set(entry.get("data") or names):
            raise ValueError(
                f"{weights}: its stage {entry.get('stage')} was trained on another split of the same data (held out "
                f"{entry.get('held_out')}), so it may know the images to test on. Give other weights."
            )


def check_start(weights: Path, config: ProtocolConfig, split: Split, train_sha256: str) -> None:
    """Refuse weights to start from that know images to test on, whatever the folder was called.

    Known are the digests of the images of a stage. Of one that keeps none, the hash of all its images: of the data and
    of every external set, whole or without the share that it held out, and of the test sets; and folders' names.
    """
    check_lineage(weights, [Path(folder) for folder in config.data], train_sha256)
    lineage = read_lineage(read_metadata(weights))
    entries = [entry for entry in lineage.entries if DIGESTS not in entry]
    trained_on = {entry.get("data_sha256") for entry in entries} - {train_sha256}
    names = {name for entry in entries for name in entry.get("data") or ()}
    tests = [OTHERS if train_sha256 == split.digests.get("small train") else HELD_OUT, *config.external]
    seen = [name for name in tests if seen_records(lineage, split.tests[name], train_sha256)]
    seen += [name for name, digest in split.digests.items() if digest in trained_on]
    seen += [name for name, paths in config.external.items() if names & {Path(path).resolve().name for path in paths}]
    for name, paths in {"data": config.data, **config.external}.items():
        if not seen and seen_folders(weights, [Path(path) for path in paths], known=[train_sha256]):
            seen.append(name)
    if seen:
        raise ValueError(
            f"{weights}: a stage of it was trained on images of {seen[0]!r}, so it may know the images to test on. "
            "Give other weights, or other images."
        )


def counts_by_class(records: Sequence[Record], classes: Sequence[str]) -> Mapping[str, int]:
    """How many images of each class."""
    return {label: sum(record.label == label for record in records) for label in classes}
