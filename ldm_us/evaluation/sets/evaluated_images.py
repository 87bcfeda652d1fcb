"""Which images a model may be measured on: those that no stage of it was trained on, and the judge neither.

A stage keeps a digest of each image that it was trained on (ldm_us/files/lineage.py), so that an image is known in any
folder and under any name. A stage of an older version kept one hash of all its images and the names of their folders.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_us.data.digests import image_digests
from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.readers.datasets import read_datasets, read_folders, records_of
from ldm_us.data.readers.findings import captioned
from ldm_us.data.records import PHANTOM_GROUP, Record
from ldm_us.data.split import SPLIT_SEED, split_by_group
from ldm_us.evaluation.judge.file import Training, seen_in_training
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import DIGESTS, Lineage, read_lineage
from ldm_us.training.dataset import OTHER_SPLIT, data_hash

# The models of ldm_us/weights/ keep no digests, but the hash of all their images says which phantoms these are.
PHANTOMS = {"6ef4ed5cbb9a4d04787f90029d58276ba65eb9c654ce2f3227fa4c595e321f72": f"{PHANTOM_GROUP}1:"}  # of seed 1


def held_out_records(weights: Path, folders: Sequence[Path]) -> list[Record]:
    """The images of the training folders that no stage was trained on: the split that the file's lineage names."""
    train, held_out = lineage_split(weights, folders)
    if not held_out:
        groups = len({record.group for record in train})
        raise ValueError(
            f"{weights}: its training held no image out: {len(train)} images in {groups} groups (of patients or "
            "near-duplicates) left no group to spare. Measure on other images with --unseen."
        )
    return held_out


def lineage_split(weights: Path, folders: Sequence[Path]) -> tuple[list[Record], list[Record]]:
    """Split the training folders as the model file's lineage says: the images trained on, and those held out.

    A model may have been trained on one dataset after another: its last stage on this very split of `folders`, and no
    stage before on an image that is held out now.
    """
    lineage = read_lineage(read_metadata(weights))
    if not lineage.entries:
        raise ValueError(
            f"{weights}: was not trained here, so it has no held-out images. Add --unseen to measure on all of --data."
        )
    share, captions = (lineage.entries[-1].get(name) for name in ("held_out", "captions"))
    if not share:
        raise ValueError(f"{weights}: was trained with --held-out 0, so there is nothing left to evaluate on.")
    records = merge_families(records_of(captioned(read_folders(folders), captions)[0]))
    train, held_out = split_by_group(records, share, SPLIT_SEED)
    known = data_hash(train)
    if lineage.entries[-1].get("data_sha256") != known:
        otherwise = "" if DIGESTS in lineage.entries[-1] else f" ({OTHER_SPLIT})"
        raise ValueError(
            f"{weights}: was trained on other images than --data gives now{otherwise}, so the held-out ones may be "
            "among them. Give the same, unchanged folders as in training, or --unseen with a folder that it was not "
            "trained on."
        )
    seen = seen_records(lineage, held_out, known)
    if seen:
        raise ValueError(
            f"{weights}: its stage {seen[0][1].get('stage')} was trained on {len(seen)} of the {len(held_out)} images "
            f"that its last stage held out, such as {seen[0][0].image}. Train all stages with one --held-out, or give "
            "--unseen with other images."
        )
    names = {folder.resolve().name for folder in folders}
    for entry in undecided(lineage, held_out, known):
        trained, _ = split_by_group(records, float(entry.get("held_out") or 0), SPLIT_SEED)
        named = bool(names & set(entry.get("data") or names))
        if named or entry.get("data_sha256") == data_hash(trained):
            raise ValueError(
                f"{weights}: its stage {entry.get('stage')} was trained on another split of the same data (held out "
                f"{entry.get('held_out')}, the last stage {share}), so the held-out images may be among its training "
                f"images: it kept no digests of them, and {'the name of the folder' if named else 'their hash'} is "
                "the same. Train all stages with one --held-out."
            )
    return train, held_out


def seen_records(lineage: Lineage, records: Sequence[Record], known: str = "") -> list[tuple[Record, dict[str, Any]]]:
    """Those of the images that a stage was certainly trained on, each with one such stage.

    `known` is the hash of training images of which `records` are none.
    """
    trained_on = lineage.trained_on()
    digests = zip(records, image_digests(records), strict=True) if trained_on else ()
    seen = {record: trained_on[digest] for record, digest in digests if digest in trained_on}
    for entry in lineage.entries:
        digest = entry.get("data_sha256")
        if DIGESTS not in entry and digest in PHANTOMS and digest != known:
            seen |= {record: entry for record in records if PHANTOMS[digest] in record.group}
    return sorted(seen.items(), key=lambda item: item[0])


def undecided(lineage: Lineage, records: Sequence[Record], known: str) -> list[dict[str, Any]]:
    """The stages of which seen_records cannot tell whether they were trained on some of these images."""
    decided = {known, *(PHANTOMS if all(PHANTOM_GROUP in record.group for record in records) else ())}
    return [entry for entry in lineage.entries if DIGESTS not in entry and entry.get("data_sha256") not in decided]


def unseen_records(weights: Path, folders: Sequence[Path]) -> list[Record]:
    """All images of folders that no stage was trained on.

    A stage without digests of its images has one hash of them all. It is compared with those of each folder and of all
    folders together, whole and without the share that a stage held out: that it was trained on other parts is unknown.
    """
    lineage = read_lineage(read_metadata(weights))
    records = sorted(read_datasets(folders))
    seen = seen_records(lineage, records)
    if seen:
        raise ValueError(
            f"{weights}: its stage {seen[0][1].get('stage')} was trained on images of --data, such as "
            f"{seen[0][0].image}: {len(seen)} of these {len(records)} are not --unseen. Leave --unseen away to measure "
            "on those held out, or give other images."
        )
    whole = seen_folders(weights, folders)
    if whole:
        raise ValueError(
            f"{weights}: was trained on {', '.join(map(str, whole))} (by one hash of all images: a stage of it kept no "
            "digests), so its images are not --unseen. Leave --unseen away to measure on those held out, or give other "
            "images."
        )
    return records


def seen_folders(weights: Path, folders: Sequence[Path], known: Sequence[str] = ()) -> tuple[Path, ...]:
    """Those of the folders that a stage was trained on, alone or together; `known`: hashes that are no reason."""
    entries = read_lineage(read_metadata(weights)).entries
    trained_on = {entry.get("data_sha256") for entry in entries if DIGESTS not in entry} - {None, *known}
    shares = {0.0, *(float(entry.get("held_out") or 0) for entry in entries)}
    for group in {tuple(folders), *((folder,) for folder in folders)} if trained_on else ():
        records = merge_families(read_datasets(group))
        for share in sorted(shares):
            train, _ = split_by_group(records, share, SPLIT_SEED)
            if data_hash(train) in trained_on:
                return group
    return ()


def check_unseen_by_judge(path: Path, training: Training, records: Sequence[Record]) -> None:
    """Refuse images that the judge was trained on: on those it is better than on samples."""
    seen = len(seen_in_training(records, set(training.images)))
    if seen:
        raise ValueError(
            f"{path}: was trained on {seen} of the {len(records)} images to measure on. Train the judge on other "
            "images, or with the --held-out of the model."
        )


def not_seen_by_judge(path: Path, training: Training, folders: Sequence[Path]) -> list[Record]:
    """The images of real folders that the judge was not trained on, nor on a near-duplicate of them that lies there."""
    records = merge_families(read_datasets(folders))
    families = {record.group for record in seen_in_training(records, set(training.images))}
    unseen = sorted(record for record in records if record.group not in families)
    if not unseen:
        raise ValueError(
            f"{path}: was trained on all {len(records)} images of --real or on near-duplicates of them, so none says "
            "how well it finds lesions. Add images that it does not know, such as those held out from its training."
        )
    return unseen
