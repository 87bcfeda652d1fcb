"""Find near-duplicate images, and join the groups of a split that hold them.

Two images are near-duplicates when the normalised cross-correlation (Lewis, "Fast normalized cross-correlation", 1995)
of their high-passed 96x96 versions exceeds 0.5 at a shift of at most 2 pixels each way. The high-pass (image minus its
Gaussian of 3 pixels) removes what all ultrasound images share, bright skin and dark depth. On 617 images of BUSI this
finds the 112 families of busi_families.json exactly, with thresholds of 0.45 to 0.5; docs/LOG.md has the figures. Two
are near-duplicates also where one is the other mirrored, turned or cropped (altered_copies.py).
"""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.altered_copies import (
    AS_IT_IS,
    BLOCK,
    COARSE_BLUR,
    SIDE,
    WAYS,
    altered_pairs,
    coarse,
    likely_pairs,
    unit,
)
from ldm_us.data.busi_families import families as listed_families
from ldm_us.data.decoded import Decoded, decoder
from ldm_us.data.records import BUSI_GROUP, PHANTOM_GROUP, Record
from ldm_us.files.atomic import atomic_file
from ldm_us.files.rows import READ_ONLY

BLUR = 3.0  # pixels, standard deviation of the Gaussian that is subtracted
REACH = 2  # pixels, largest shift down and across
THRESHOLD = 0.5  # of the correlation
NEAR = 1e-3  # by so much a GPU may round a correlation at most; float32 rounds by 1e-6
CODE = ("altered_copies.py", "near_duplicates.py")  # that decides which pairs are found

Item = TypeVar("Item", bound=Hashable)


def merge_families(records: Sequence[Record], decoded: Decoded | None = None, device: str = "cpu") -> list[Record]:
    """Join the groups that share near-duplicates: the same records in the same order, some with another group.

    Groups of patients, cases and known families stay together, and two of them become one, named after the first in
    alphabetical order, where an image of one is a near-duplicate of an image of the other, in the same dataset or in
    another. The result does not depend on the order of the records. ValueError: an image does not open.
    """
    return merge_groups(records, near_duplicates(records, decoded, device))


def merge_groups(records: Sequence[Record], pairs: Iterable[tuple[int, int]]) -> list[Record]:
    """Join the groups that a pair (i, j) of records connects."""
    name = join({record.group for record in records}, [(records[i].group, records[j].group) for i, j in pairs])
    return [replace(record, group=name[record.group]) for record in records]


def near_duplicates(
    records: Sequence[Record], decoded: Decoded | None = None, device: str = "cpu"
) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of records whose images are near-duplicates.

    Phantoms are left out: their folder lists their families. Opens every other image once, or finds it in `decoded`,
    where the pairs are kept too, under all that they depend on.
    """
    compared = [i for i, record in enumerate(records) if not record.group.startswith(PHANTOM_GROUP)]
    compared.sort(key=lambda i: records[i])
    if not compared:
        return []
    images, listed = [records[i] for i in compared], [is_listed(records[i]) for i in compared]
    if decoded is None or decoded.folder is None:
        found = search(images, listed, decoded or Decoded(None, 1), device)
    else:
        names = decoded.file_hashes([record.image for record in images])
        key = sha256(json.dumps([decoder(CODE), names, listed]).encode()).hexdigest()[:32]
        path = decoded.folder / f"pairs-{key}.npy"
        if not path.exists():
            found = search(images, listed, decoded, device)
            try:
                with atomic_file(path) as file:
                    np.save(file, found)
            except OSError as error:  # image_facts has said that the folder cannot be written
                if error.errno not in READ_ONLY:
                    raise
        else:
            found = np.load(path, allow_pickle=False)
    pairs = [(compared[i], compared[j]) for i, j in found.tolist()]
    return sorted((min(pair), max(pair)) for pair in pairs)


def search(records: Sequence[Record], listed: Sequence[bool], decoded: Decoded, device: str) -> NDArray[np.int64]:
    """Compare the images of all records: the pairs (p, 2)."""
    table, at = decoded.image_facts(records)
    width, height = torch.from_numpy(table["shape"][at]).double().T
    found = copies(table["small"][at], (width / height).float(), listed, device)
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def is_listed(record: Record) -> bool:
    """Say whether this is an image of BUSI that the shipped list of families knows."""
    return record.group.startswith(BUSI_GROUP) and record.image.stem.lower() in listed_families()


def copies(
    small: NDArray[np.uint8], aspects: Tensor, listed: Sequence[bool], device: str = "cpu"
) -> set[tuple[int, int]]:
    """Find pairs i < j of copies among grey images (n, 96, 96) of these widths over heights.

    A GPU rounds otherwise. It only finds the images that have a copy or nearly one: the CPU decides which are a pair,
    so that no split depends on the device.
    """
    if not device.startswith("cuda"):
        return copies_on("cpu", small, aspects, listed, 0.0)
    near = sorted({i for pair in copies_on(device, small, aspects, listed, NEAR) for i in pair})
    found = copies_on("cpu", small[near], aspects[near], [listed[i] for i in near], 0.0)
    return {(near[i], near[j]) for i, j in found}


def copies_on(
    device: str, small: NDArray[np.uint8], aspects: Tensor, listed: Sequence[bool], slack: float
) -> set[tuple[int, int]]:
    """The same on one device; slack: how far below the thresholds a pair counts too.

    Two images that BUSI's list knows are compared unaltered alone: models are trained on the split that the list makes.
    About 26,000 n^2 multiplications, and 60 kB an image.
    """
    if len(small) == 0:
        return set()
    pictures = [Image.fromarray(each) for each in small]
    details = torch.stack([detail(picture) for picture in pictures])
    images = coarse([detail(picture, blur=COARSE_BLUR) for picture in pictures], aspects, device)
    unaltered = sorted(ordered(likely_pairs(images, AS_IT_IS, slack)))
    found = set(correlated_pairs(details, unaltered, device, slack))
    for way in tqdm(WAYS, desc="comparing images", unit="way", delay=1):
        likely = [(i, j) for i, j in sorted(likely_pairs(images, way, slack)) if not (listed[i] and listed[j])]
        new = [(i, j) for i, j in likely if (min(i, j), max(i, j)) not in found]
        found |= ordered(altered_pairs(details, images.aspects, way, new, slack))
    return found


def ordered(pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Each pair with its smaller index first."""
    return {(min(pair), max(pair)) for pair in pairs}


def detail(picture: Image.Image, height: int = SIDE, width: int = SIDE, blur: float = BLUR) -> Tensor:
    """High-pass an image: (height, width) float32, grey levels less their Gaussian mean."""
    grey = picture.convert("L").resize((width, height), Image.Resampling.BICUBIC)
    smooth = grey.filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.asarray(grey, np.float32) - np.asarray(smooth, np.float32))


def correlated_pairs(
    details: Tensor, pairs: Sequence[tuple[int, int]], device: str = "cpu", slack: float = 0.0
) -> list[tuple[int, int]]:
    """Keep the pairs (i, j) of images (n, h, w) that correlate above THRESHOLD - slack at some shift."""
    kept = []
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        i, j = torch.tensor(block).T
        a, b = details[i].to(device), details[j].to(device)
        best = torch.zeros(len(block), device=device)
        for down, across in product(range(-REACH, REACH + 1), repeat=2):
            one, other = windows(a, down, across), windows(b, -down, -across)
            best = torch.maximum(best, (one * other).sum(dim=1))
        kept += [
            pair for pair, correlation in zip(block, best.tolist(), strict=True) if correlation > THRESHOLD - slack
        ]
    return kept


def windows(details: Tensor, down: int, across: int) -> Tensor:
    """Cut from (b, h, w) what overlaps after a shift; (b, pixels), each of mean 0 and norm 1, or all 0 where flat."""
    h, w = details.shape[1:]
    return unit(details[:, max(0, down) : h + min(0, down), max(0, across) : w + min(0, across)])


def families(records: Sequence[Record], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Join records by the pairs and by the families that BUSI and phantoms know: indices, families of two and more."""
    first: dict[str, int] = {}
    known = []
    for i, record in enumerate(records):
        if record.group.startswith((BUSI_GROUP, PHANTOM_GROUP)):
            known.append((first.setdefault(record.group, i), i))
    members: dict[int, list[int]] = {}
    for i, representative in sorted(join(range(len(records)), [*known, *pairs]).items()):
        members.setdefault(representative, []).append(i)
    return [family for family in members.values() if len(family) > 1]


def join(items: Iterable[Item], pairs: Iterable[tuple[Item, Item]]) -> dict[Item, Item]:
    """Map each item to the smallest of all that pairs connect it with (union-find)."""
    parent = {item: item for item in items}

    def root(item: Item) -> Item:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))  # type: ignore[type-var]
        parent[high] = low
    return {item: root(item) for item in parent}
