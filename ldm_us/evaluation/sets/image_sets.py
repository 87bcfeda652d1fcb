"""Two sets of images to compare, real and generated: listed, checked against each other, and streamed at one size.

A set is a dataset that the readers of ldm_us.data know, or a folder of sample.py. Every image is resized whole to a
square, as in training. Only a batch of pixels is in memory at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.readers.datasets import read_dataset
from ldm_us.data.records import CLASSES, Record, load_image, open_image
from ldm_us.evaluation.sets.sample_folder import read_samples
from ldm_us.synthesis.folder import MANIFEST

COLOURED = 8  # grey levels between the channels of a pixel, above which it has a colour
LOOKED_AT = 32  # images of a set that decide whether it is a set of colour images
LEAST_SIDE = 8  # pixels; less is no picture


def read_set(folders: Sequence[Path]) -> list[Record]:
    """List the images of all folders: datasets, or folders of samples with their manifest."""
    return [record for folder in folders for record in _read_folder(folder)]


def _read_folder(folder: Path) -> list[Record]:
    flat = (folder / MANIFEST).is_file() and not any((folder / name).is_dir() for name in CLASSES)
    return read_samples(folder) if flat else read_dataset(folder)


@dataclass(frozen=True)
class Seen:
    """What one pass over the files of a set tells, in the order of its records."""

    digests: list[bytes]  # of the grey pixels
    sizes: list[tuple[int, int]]  # width, height
    coloured: bool  # most of the images


def look_at(records: Sequence[Record], option: str) -> Seen:
    """Decode every image of a set once. Raise ValueError for none, for one listed twice and for one without a picture.

    Two files of the same pixels may be in a set: real datasets have such, and so has a generator that repeats itself.
    A coloured mark in a few images does not make a set of colour images.
    """
    if not records:
        raise ValueError(f"{option}: no images in it. Give a folder with images.")
    paths, digests, sizes = set[Path](), [], []
    deviations: list[int] = []
    step = max(1, len(records) // LOOKED_AT)
    for i, record in enumerate(records):
        path = record.image.resolve()
        if path in paths:
            raise ValueError(f"{option}: {record.image} is listed twice. Give every folder and every image once.")
        paths.add(path)
        picture = open_image(record.image)
        if min(picture.size) < LEAST_SIDE:
            raise ValueError(
                f"{option}: {record.image} is {picture.width}x{picture.height}. Give images of {LEAST_SIDE} pixels "
                "and more a side."
            )
        sizes.append(picture.size)
        digests.append(sha256(f"{picture.size} ".encode() + picture.convert("L").tobytes()).digest())
        if i % step == 0 and len(deviations) < LOOKED_AT:
            deviations.append(deviation_of_channels(picture))
    return Seen(digests, sizes, sum(one > COLOURED for one in deviations) > len(deviations) / 2)


def check_sets(
    real: Sequence[Record],
    generated: Sequence[Record],
    size: int | None,
    option: str = "--real",
    seek_copies: bool = False,
) -> int:
    """Return the side, in pixels, at which two sets are compared: `size`, or the one that all images have.

    Raise ValueError for sets without images, for images that are in both, pixel for pixel, for different sizes where
    `size` is None, or where one set is grey and the other in colour. `option` names the real set. To `seek_copies`
    is to find images that are in both, so that only a generated set that holds nothing else is refused.
    """
    if size is not None and size < LEAST_SIDE:
        raise ValueError(f"--size {size}: no picture. Use {LEAST_SIDE} pixels or more.")
    seen, seen_generated = look_at(real, option), look_at(generated, "--generated")
    known = {digest: record.image.name for digest, record in zip(seen.digests, real, strict=True)}
    copied = [known[digest] for digest in seen_generated.digests if digest in known]
    if copied and (not seek_copies or len(copied) == len(generated)):
        raise ValueError(
            f"--generated: {len(copied)} of {len(generated)} images are, pixel for pixel, images of {option} "
            f"({copied[0]}{', ...' if len(copied) > 1 else ''}). Give two different sets of images."
        )
    if seen.coloured != seen_generated.coloured:
        which = (option, "--generated") if seen.coloured else ("--generated", option)
        raise ValueError(f"{which[0]}: in colour, but {which[1]} is grey. Save both as grey images.")
    return size if size is not None else common_size(seen, seen_generated)


def common_size(real: Seen, generated: Seen) -> int:
    """Return the side that all images of both sets have; ValueError where there is none."""
    sizes = [sorted(set(seen.sizes)) for seen in (real, generated)]
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


def grey_deviation(path: Path) -> int:
    """Return the largest difference between red, green and blue of a pixel, in grey levels: 0 where R = G = B."""
    return deviation_of_channels(open_image(path))


def deviation_of_channels(picture: Image.Image) -> int:
    """The same of a decoded image."""
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
