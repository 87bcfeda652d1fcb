"""Two sets of images to compare, real and generated: listed, checked against each other, and streamed at one size.

A set is a dataset that the readers of ldm_us.data know, or a folder of sample.py. Every image is resized whole to a
square, as in training. Only a batch of pixels is in memory at a time.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_us.atomic import sha256_file
from ldm_us.data.datasets import read_dataset
from ldm_us.data.records import UNKNOWN, Record, load_image, open_image
from ldm_us.synthesis.folder import MANIFEST

COLOURED = 8  # grey levels between the channels of a pixel, above which it has a colour
LOOKED_AT = 32  # images of a set that decide whether it is a set of colour images


def read_set(folders: Sequence[Path]) -> list[Record]:
    """List the images of all folders: datasets, or folders of samples with their manifest."""
    return [record for folder in folders for record in _read_folder(folder)]


def _read_folder(folder: Path) -> list[Record]:
    manifest = folder / MANIFEST
    if not manifest.is_file() or any((folder / name).is_dir() for name in ("benign", "malignant", "normal")):
        return read_dataset(folder)
    records = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            image, label, prompt = folder / entry["file_name"], entry.get("class") or UNKNOWN, entry.get("prompt", "")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{manifest}, line {number}: not a line of sample.py ({error}). Sample again.") from error
        records.append(Record(image, (), label, prompt, str(image)))
    return records


def check_sets(real: Sequence[Record], generated: Sequence[Record], size: int | None, option: str = "--real") -> int:
    """Return the side, in pixels, at which two sets are compared: `size`, or the one that all images have.

    Raise ValueError for sets without images, of the same images, of different sizes where `size` is None, or where one
    is grey and the other in colour. `option` names the real set.
    """
    for name, records in ((option, real), ("--generated", generated)):
        if not records:
            raise ValueError(f"{name}: no images in it. Give a folder with images.")
    digests = {sha256_file(record.image) for record in real}
    if all(sha256_file(record.image) in digests for record in generated):
        raise ValueError(
            f"--generated: every image in it is, byte for byte, one of {option}. Give two different sets of images."
        )
    colours = [is_coloured(records) for records in (real, generated)]
    if colours[0] != colours[1]:
        which = (option, "--generated") if colours[0] else ("--generated", option)
        raise ValueError(f"{which[0]}: in colour, but {which[1]} is grey. Save both as grey images.")
    return size if size is not None else common_size(real, generated)


def common_size(real: Sequence[Record], generated: Sequence[Record]) -> int:
    """Return the side that all images of both sets have; ValueError where there is none."""
    sizes = [sorted({_size_of(record.image) for record in records}) for records in (real, generated)]
    if sizes[0] == sizes[1] and len(sizes[0]) == 1 and len(set(sizes[0][0])) == 1:
        return sizes[0][0][0]
    listed = " and ".join(_sizes(option, found) for option, found in zip(("--real", "--generated"), sizes, strict=True))
    wanted = max(sizes[1][0])  # a generated image's side, as a rule that of all of them
    raise ValueError(
        f"{listed}: two sets are compared at one size, square. Add --size {wanted} to resize every image, or "
        "give sets of one size."
    )


def _sizes(option: str, found: Sequence[tuple[int, int]]) -> str:
    width, height = found[0]
    more = f" and {len(found) - 1} other sizes" if len(found) > 1 else ""
    return f"{option} has images of {width}x{height}{more}"


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:  # the header alone
            return picture.size
    except (OSError, Image.DecompressionBombError):
        return open_image(path).size  # says what is wrong with the file


def is_coloured(records: Sequence[Record]) -> bool:
    """Whether most images of a set have colours; a coloured mark in a few does not make a set of colour images."""
    step = max(1, len(records) // LOOKED_AT)
    chosen = records[::step][:LOOKED_AT]
    return sum(grey_deviation(record.image) > COLOURED for record in chosen) > len(chosen) / 2


def grey_deviation(path: Path) -> int:
    """Return the largest difference between red, green and blue of a pixel, in grey levels: 0 where R = G = B."""
    picture = open_image(path)
    if picture.mode in ("1", "L", "LA"):
        return 0
    channels = np.asarray(picture.convert("RGB")).astype(int)
    return int((channels.max(axis=2) - channels.min(axis=2)).max())


def stream(records: Sequence[Record], size: int, batch: int = 32) -> Iterator[Tensor]:
    """Yield the images in order: (b, 1, size, size) in [0, 1], at most `batch` at a time."""
    for i in range(0, len(records), batch):
        images = [load_image(record.image, size)[:1] / 2 + 0.5 for record in records[i : i + batch]]
        yield torch.stack(images)


def check_enough(records: Sequence[Record], needed: int, option: str, metric: str) -> None:
    """Raise ValueError where a metric needs more images than there are."""
    if len(records) < needed:
        raise ValueError(f"{option}: {len(records)} images, but {metric} needs at least {needed}. Give more images.")
