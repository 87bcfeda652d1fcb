"""Find near-duplicate images, and join the groups of a split that hold them.

Two images are near-duplicates when the normalised cross-correlation (Lewis, "Fast normalized cross-correlation", 1995)
of their high-passed 96x96 versions exceeds 0.5 at a shift of at most 2 pixels each way. The high-pass (image minus its
Gaussian of 3 pixels) removes what all ultrasound images share, bright skin and dark depth. On 617 images of BUSI this
finds the 112 families of busi_families.json exactly, with thresholds of 0.45 to 0.5; docs/LOG.md has the figures.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ldm_us.data.records import BUSI_GROUP, PHANTOM_GROUP, Record, open_image

SIDE = 96  # pixels of the compared images
BLUR = 3.0  # pixels, standard deviation of the Gaussian that is subtracted
REACH = 2  # pixels, largest shift down and across
THRESHOLD = 0.5  # of the correlation
BLOCK = 512  # images that are compared with each other at a time
FLAT = 1e-3  # an image whose detail has a smaller norm shows nothing to compare

Item = TypeVar("Item", bound=Hashable)


def merge_families(records: Sequence[Record]) -> list[Record]:
    """Join the groups that share near-duplicates: the same records in the same order, some with another group.

    Groups of patients, cases and known families stay together, and two of them become one, named after the first in
    alphabetical order, where an image of one is a near-duplicate of an image of the other, in the same dataset or in
    another. The result does not depend on the order of the records. ValueError: an image does not open.
    """
    return merge_groups(records, near_duplicates(records))


def merge_groups(records: Sequence[Record], pairs: Iterable[tuple[int, int]]) -> list[Record]:
    """Join the groups that a pair (i, j) of records connects."""
    name = join({record.group for record in records}, [(records[i].group, records[j].group) for i, j in pairs])
    return [replace(record, group=name[record.group]) for record in records]


def near_duplicates(records: Sequence[Record]) -> list[tuple[int, int]]:
    """Find the pairs (i, j), i < j, of records whose images are near-duplicates.

    Phantoms are left out: their folder lists their families. Opens every other image once.
    """
    compared = [i for i, record in enumerate(records) if not record.group.startswith(PHANTOM_GROUP)]
    compared.sort(key=lambda i: records[i])
    if not compared:
        return []
    details = torch.stack([detail(open_image(records[i].image)) for i in compared])
    pairs = [(compared[i], compared[j]) for i, j in correlated_pairs(details)]
    return sorted((min(pair), max(pair)) for pair in pairs)


def detail(picture: Image.Image, height: int = SIDE, width: int = SIDE, blur: float = BLUR) -> Tensor:
    """High-pass an image: (height, width) float32, grey levels less their Gaussian mean."""
    grey = picture.convert("L").resize((width, height), Image.Resampling.BICUBIC)
    smooth = grey.filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.asarray(grey, np.float32) - np.asarray(smooth, np.float32))


def correlated_pairs(details: Tensor) -> list[tuple[int, int]]:
    """Find the pairs i < j of images (n, h, w) that correlate above THRESHOLD at some shift.

    One product of matrices a shift, in blocks: about n^2 / 2 * 25 * h w multiplications and 37 kB an image (at 96x96),
    plus 45 MB. On one AVX2 core 617 images take 1.4 s, 2,655 (BUSI and BUS-BRA) 25 s.
    """
    shifts = [(down, across) for down in range(REACH + 1) for across in range(-REACH, REACH + 1)]
    shifts = shifts[REACH:]  # (0, 0) on: the others are these with both images exchanged
    found: set[tuple[int, int]] = set()
    for down, across in shifts:
        for i in range(0, len(details), BLOCK):
            moved = windows(details[i : i + BLOCK], down, across)
            for j in range(0, len(details), BLOCK):
                correlation = moved @ windows(details[j : j + BLOCK], -down, -across).T  # (b, b)
                for row, column in (correlation > THRESHOLD).nonzero().tolist():
                    if i + row != j + column:
                        found.add((min(i + row, j + column), max(i + row, j + column)))
    return sorted(found)


def windows(details: Tensor, down: int, across: int) -> Tensor:
    """Cut from (b, h, w) what overlaps after a shift; (b, pixels), each of mean 0 and norm 1, or all 0 where flat."""
    h, w = details.shape[1:]
    return unit(details[:, max(0, down) : h + min(0, down), max(0, across) : w + min(0, across)])


def unit(cut: Tensor) -> Tensor:
    """Flatten (b, ...) to (b, pixels), each of mean 0 and norm 1, or all 0 where flat: products are correlations."""
    cut = cut.flatten(1)
    cut = cut - cut.mean(dim=1, keepdim=True)
    norm = cut.norm(dim=1, keepdim=True)
    return cut / norm.clamp_min(FLAT) * (norm > FLAT)


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
