"""Two sets of images to compare, real and generated: listed, checked, one image of each family, streamed at one size.

A set is a dataset that the readers of ldm_us.data know, or a folder of sample.py, listed by its manifest. Samples of
one mask share their lesion, samples of one --init the whole scene: no independent images, so they are one group. The
empty mask of the class normal makes no family, as in the layout of BUSI. Every image is resized whole to a square, as
in training. Only a batch of pixels is in memory at a time.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.digests import pixel_digest
from ldm_us.data.near_duplicates import join, merge_families
from ldm_us.data.opening import open_image
from ldm_us.data.organ import BREAST, UNKNOWN
from ldm_us.data.readers.busi import SAMPLES_INFO
from ldm_us.data.readers.datasets import check_folders, read_dataset
from ldm_us.data.records import Record, load_image
from ldm_us.synthesis.fields import mask_is_empty
from ldm_us.synthesis.folder import MANIFEST, read_list
from ldm_us.synthesis.recipe import edited_image, settings_of

COLOURED = 8  # grey levels between the channels of a pixel, above which it has a colour
LOOKED_AT = 32  # images of a set that decide whether it is a set of colour images
LEAST_SIDE = 8  # pixels; less is no picture


def read_set(folders: Sequence[Path]) -> list[Record]:
    """List the images of all folders: datasets, or folders of samples with their manifest.

    ValueError: two folders hold the same files.
    """
    sets = []
    for folder in folders:
        classes = (folder / SAMPLES_INFO).is_file() or any((folder / name).is_dir() for name in BREAST.classes)
        flat = (folder / MANIFEST).is_file() and not classes
        sets.append(read_samples(folder) if flat else read_dataset(folder))
    check_folders(folders, sets)
    return [record for one in sets for record in one]


def squashed(folders: Sequence[Path]) -> bool:
    """Whether folders of samples are of models that saw all images squashed to squares; other folders are not so."""
    for manifest in (folder / MANIFEST for folder in folders if (folder / MANIFEST).is_file()):
        with suppress(ValueError, TypeError, KeyError, AttributeError, StopIteration):  # read_set says what is wrong
            if settings_of(next(read_list(manifest))).get("aspect", "squash") == "squash":
                return True
    return False


def size_of(record: Record) -> tuple[int, int]:
    """Width and height of an image file."""
    return open_image(record.image).size


def read_samples(folder: Path) -> list[Record]:
    """List the samples of a manifest. Raise ValueError, naming file and line, for what sample.py did not write."""
    manifest, records, sources = folder / MANIFEST, [], []
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest}: not a manifest of sample.py ({error}). Sample again.") from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            image, label, prompt = folder / entry["file_name"], entry.get("class") or UNKNOWN, entry.get("prompt", "")
            if not isinstance(label, str) or not isinstance(prompt, str):
                raise TypeError("class or prompt is not a text")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{manifest}, line {number}: not a line of sample.py ({error}). Sample again.") from error
        sources.append(sources_of(entry, image))
        records.append((image, label, prompt))
    names = join(
        {name for own in sources for name in own}, [(own[0], other) for own in sources for other in own[1:]]
    )  # transitive: two masks of one --init are one group
    return [
        Record(image, (), label, prompt, names[own[0]])
        for (image, label, prompt), own in zip(records, sources, strict=True)
    ]


def sources_of(entry: dict[str, Any], image: Path) -> list[str]:
    """What a sample was made from: its --init and its mask, unless that is empty; without either, itself."""
    sources = {"init": edited_image(entry), "mask": None if mask_is_empty(entry) else entry.get("mask_sha256")}
    return [f"sample {kind} {sha256}" for kind, sha256 in sources.items() if sha256] or [str(image)]


def look_at(records: Sequence[Record], option: str) -> tuple[list[bytes], list[tuple[int, int]], bool]:
    """Decode every image of a set once. Raise ValueError for none, for one listed twice and for one without a picture.

    -> digests of their grey pixels and sizes (width, height), in order, and whether most of them are coloured.
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
        digests.append(pixel_digest(picture))
        if i % step == 0 and len(deviations) < LOOKED_AT:
            deviations.append(grey_deviation(picture))
    return digests, sizes, sum(one > COLOURED for one in deviations) > len(deviations) / 2


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
    digests, sizes, coloured = look_at(real, option)
    digests_generated, sizes_generated, coloured_generated = look_at(generated, "--generated")
    known = {digest: record.image.name for digest, record in zip(digests, real, strict=True)}
    copied = [known[digest] for digest in digests_generated if digest in known]
    if copied and (not seek_copies or len(copied) == len(generated)):
        raise ValueError(
            f"--generated: {len(copied)} of {len(generated)} images are, pixel for pixel, images of {option} "
            f"({copied[0]}{', ...' if len(copied) > 1 else ''}). Give two different sets of images."
        )
    if coloured != coloured_generated:
        which = (option, "--generated") if coloured else ("--generated", option)
        raise ValueError(f"{which[0]}: in colour, but {which[1]} is grey. Save both as grey images.")
    return size if size is not None else common_size(sizes, sizes_generated)


def common_size(real: Sequence[tuple[int, int]], generated: Sequence[tuple[int, int]]) -> int:
    """Return the side that all images of both sets have; ValueError where there is none."""
    sizes = {"--real": sorted(set(real)), "--generated": sorted(set(generated))}
    found = sizes["--real"]
    if found == sizes["--generated"] and len(found) == 1 and found[0][0] == found[0][1]:
        return found[0][0]
    listed = " and ".join(
        f"{option} has images of {of[0][0]}x{of[0][1]}" + (f" and {len(of) - 1} other sizes" if len(of) > 1 else "")
        for option, of in sizes.items()
    )
    wanted = max(sizes["--generated"][0])  # a generated image's side, as a rule that of all of them
    raise ValueError(
        f"{listed}: two sets are compared at one size. Add --size {wanted} to resize every image, or "
        "give sets of one size."
    )


def grey_deviation(picture: Image.Image) -> int:
    """Return the largest difference between red, green and blue of a pixel, in grey levels: 0 where R = G = B."""
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


def one_per_family(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Keep the first image of each group, near-duplicates joined, as one_per_group does. Opens every image once."""
    return one_per_group(merge_families(records))


def one_per_group(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Keep the first image of each group; a group of two classes has no class and is left out: -> how many of them.

    Samples of one mask are a group too. Where all groups are so, as patients seen in several views, none is a conflict:
    one image of each is kept, of its classes in turn.
    """
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record.group, []).append(record)
    pure = [family for family in families.values() if len({record.label for record in family}) == 1]
    if not pure:
        return [family[i % len(family)] for i, family in enumerate(families.values())], 0
    return [family[0] for family in pure], len(families) - len(pure)


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
