"""Which images a model may be measured on: those that no stage of it was trained on, and the judge neither."""

from collections.abc import Sequence
from pathlib import Path

from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.records import Record
from ldm_us.data.split import SPLIT_SEED, split_by_group
from ldm_us.evaluation.judge.file import Training, image_digest, image_digests
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.training.dataset import data_hash, read_data, split_data


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

    A model may have been trained on one dataset after another. Each stage was trained either on this very split of
    `folders`, or on folders of other names; at least the last stage on this split.
    """
    entries = read_lineage(read_metadata(weights)).entries
    if not entries:
        raise ValueError(
            f"{weights}: was not trained here, so it has no held-out images. Add --unseen to measure on all of --data."
        )
    share = entries[-1].get("held_out")
    if not share:
        raise ValueError(f"{weights}: was trained with --held-out 0, so there is nothing left to evaluate on.")
    train, held_out = split_data(folders, share)
    digest, names = data_hash(train), {folder.resolve().name for folder in folders}
    others = [entry for entry in entries if entry.get("data_sha256") != digest]
    if entries[-1] in others:
        raise ValueError(
            f"{weights}: was trained on other images than --data gives now, so the held-out ones may be among them. "
            "Give the same, unchanged folders as in training, or --unseen with a folder that it was not trained on."
        )
    mixed = [entry for entry in others if names & set(entry.get("data") or names)]
    if mixed:
        raise ValueError(
            f"{weights}: its stage {mixed[0].get('stage')} was trained on another split of the same data (held out "
            f"{mixed[0].get('held_out')}, the last stage {share}), so the held-out images may be among its training "
            "images. Train all stages with one --held-out."
        )
    return train, held_out


def unseen_records(weights: Path, folders: Sequence[Path]) -> list[Record]:
    """All images of folders that no stage was trained on. That they were not is the user's word, checked in part.

    The lineage knows one hash of all training images of a stage. It is compared with those of each folder and of all
    folders together, whole and without the share that a stage held out. Other parts of training data go unnoticed.
    """
    seen = seen_folders(weights, folders)
    if seen:
        raise ValueError(
            f"{weights}: was trained on {', '.join(map(str, seen))}, so its images are not --unseen. Leave --unseen "
            "away to measure on those held out, or give other images."
        )
    return sorted(read_data(folders))


def seen_folders(weights: Path, folders: Sequence[Path], known: Sequence[str] = ()) -> tuple[Path, ...]:
    """Those of the folders that a stage was trained on, alone or together; `known`: hashes that are no reason."""
    entries = read_lineage(read_metadata(weights)).entries
    trained_on = {entry.get("data_sha256") for entry in entries} - {None, *known}
    shares = {0.0, *(float(entry.get("held_out") or 0) for entry in entries)}
    for group in {tuple(folders), *((folder,) for folder in folders)} if trained_on else ():
        records = merge_families(read_data(group))
        for share in sorted(shares):
            train, _ = split_by_group(records, share, SPLIT_SEED)
            if data_hash(train) in trained_on:
                return group
    return ()


def check_unseen_by_judge(path: Path, training: Training, records: Sequence[Record]) -> None:
    """Refuse images that the judge was trained on: on those it is better than on samples."""
    known = set(training.images)
    seen = sum(digest in known for digest in image_digests(records))
    if seen:
        raise ValueError(
            f"{path}: was trained on {seen} of the {len(records)} images to measure on. Train the judge on other "
            "images, or with the --held-out of the model."
        )


def not_seen_by_judge(path: Path, training: Training, folders: Sequence[Path]) -> list[Record]:
    """The images of real folders that the judge was not trained on, nor on a near-duplicate of them that lies there."""
    records = merge_families(read_data(folders))
    known = set(training.images)
    families = {record.group for record in records if image_digest(record) in known}
    unseen = sorted(record for record in records if record.group not in families)
    if not unseen:
        raise ValueError(
            f"{path}: was trained on all {len(records)} images of --real or on near-duplicates of them, so none says "
            "how well it finds lesions. Add images that it does not know, such as those held out from its training."
        )
    return unseen
