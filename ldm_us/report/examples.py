"""Masks and originals for the figures of a report: held-out images of the run, or drawn lesions where they are gone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_us.data.records import Record, load_pair
from ldm_us.training.dataset import data_hash, split_data

COUNTS = {"benign": 2, "malignant": 2, "normal": 1}


class Example(NamedTuple):
    """An image with its lesion mask."""

    name: str
    label: str
    mask: Tensor  # (1, H, W) in {0, 1}
    x: Tensor | None  # (3, H, W) in [-1, 1]; None for a drawn mask


def read_examples(config: dict[str, Any], folders: Sequence[Path], size: int) -> tuple[list[Example], list[str]]:
    """A few held-out images of each class, and notes; none where the data cannot be read."""
    try:
        train, held_out = split_data(folders, float(config["held_out"]))
        notes = []
        if not held_out:
            notes.append("The run held no images out: the originals below are training images.")
        elif data_hash(train) != config["data_sha256"]:
            notes.append("The data folder has changed since training: the originals below may be training images.")
        examples = []
        for record in choose(held_out or train):
            x, mask = load_pair(record, size)
            examples.append(Example(record.image.stem, record.label, mask, x))
        return examples, notes
    except (ValueError, OSError) as error:
        return [], [f"The data of the run cannot be read, so no originals are shown: {error}"]


def choose(records: Sequence[Record]) -> list[Record]:
    """The first few of each class, those with a mask file before those without."""
    chosen: list[Record] = []
    for label, count in COUNTS.items():
        of_class = [record for record in records if record.label == label]
        chosen += sorted(of_class, key=lambda record: not record.masks)[:count]
    return chosen


def drawn_examples(size: int) -> list[Example]:
    """An oval lying for benign, and one standing for malignant, white in the middle of a black mask."""
    examples, place = [], torch.linspace(-0.5, 0.5, size)
    # Half axes as shares of the side.
    for name, label, width, height in (("lying", "benign", 0.24, 0.13), ("standing", "malignant", 0.13, 0.24)):
        oval = (place[None, :] / width) ** 2 + (place[:, None] / height) ** 2 <= 1
        examples.append(Example(f"drawn, {name}", label, oval.float()[None], None))
    return examples
