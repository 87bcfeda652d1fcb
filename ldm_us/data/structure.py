"""A mask that is no file of its own: outlines or runs in a table of annotations, or some levels of a file of labels.

A ControlNet of several structures has a channel for each, and a pixel may be of more than one. In memory it is then the
sum of 2^k over its structures, in a file of labels the place of this sum among those of one structure, of two, and so
on: the labels 1, 2, 3 are the structures themselves, and with two of them 3 is where both are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ldm_us.config import MASK, PICTURE
from ldm_us.files.atomic import sha256_file
from ldm_us.runtime.checks import check_extra

LEAST = 6  # numbers of an outline: three corners
FINE = 4  # an outline is drawn so many times as large, and each pixel takes what lies at its centre


@dataclass(frozen=True, order=True)
class Structure:
    """Where a mask is written, and what it takes to draw it. Structures of one file have different keys."""

    source: Path
    key: str
    size: tuple[int, int] = (0, 0)  # width and height; of a level, those of its file
    outlines: tuple[tuple[float, ...], ...] = ()  # x, y, x, y, ... in pixels, whole numbers at their corners
    runs: tuple[str, ...] = ()  # of COCO, each as JSON: {"size": [height, width], "counts": ...}
    levels: tuple[int | str, ...] = ()  # in a file of labels: numbers, or colours as "#ff0000"
    named: tuple[int | str, ...] = ()  # all of the file that a description names; empty: any other is no structure
    value: int = 255  # of its pixels in a union of masks: 2^k beside other structures; 0: the grey levels of a picture

    @property
    def whole(self) -> bool:
        """Whether it is all of its file."""
        return not (self.levels or self.outlines or self.runs)

    def __str__(self) -> str:
        return f"{self.source} ({self.key})"

    @property
    def name(self) -> str:
        """The name of the file, and which one of it."""
        return f"{self.source.name} ({self.key})"

    def digest(self) -> str:
        """SHA-256 of what is drawn, wherever the file lies and whatever channel it has."""
        if self.whole:
            return sha256_file(self.source)
        content = sha256_file(self.source) if self.levels else [self.size, self.outlines, self.runs]
        return sha256(json.dumps([content, self.levels]).encode()).hexdigest()

    def drawn(self, labels: Image.Image | None) -> Image.Image:
        """The mask, mode L, 0 or 255. labels: the decoded file, where it is some levels of that."""
        if labels is not None:
            return Image.fromarray(self.among(labels).astype(np.uint8) * 255)
        width, height = self.size
        union = np.zeros((height, width), np.uint8)
        if self.outlines:
            picture = Image.new("L", (FINE * width, FINE * height))
            for outline in self.outlines:
                ImageDraw.Draw(picture).polygon([FINE * place for place in outline], fill=255)
            union = np.asarray(picture)[FINE // 2 :: FINE, FINE // 2 :: FINE]
        for runs in self.runs:
            union = np.maximum(union, self.unpacked(json.loads(runs)) * 255)
        return Image.fromarray(union)

    def among(self, labels: Image.Image) -> NDArray[np.bool_]:
        """The pixels (h, w) of a decoded file of labels that are of this structure."""
        colours = any(isinstance(level, str) for level in (*self.levels, *self.named))
        found = levels_of(labels, colours)
        if self.named and (others := set(np.unique(found).tolist()) - set(map(number_of, self.named)) - {0}):
            other = f"#{min(others):06x}" if colours else min(others)
            raise ValueError(
                f"{self.source}: {other} is there, and the labels with a name are {', '.join(map(str, self.named))}. "
                "Name it among the structures of dataset.json, or draw the mask again without soft edges."
            )
        return np.isin(found, list(map(number_of, self.levels)))

    def unpacked(self, runs: dict[str, Any]) -> Any:
        """Runs of COCO, compressed or not, as pixels (h, w) in {0, 1}."""
        check_extra("coco", "pycocotools")
        from pycocotools import mask

        try:
            packed = runs if isinstance(runs["counts"], str) else mask.frPyObjects(runs, *runs["size"])
            pixels = mask.decode(packed)
        except Exception as error:  # of a compiled library, whatever it stumbles over
            raise ValueError(f"{self} cannot be unpacked ({error}). Export the annotations again.") from error
        if pixels.shape[::-1] != self.size:
            raise ValueError(f"{self}: its runs are of {pixels.shape[1]}x{pixels.shape[0]} pixels, not {self.size}.")
        return pixels


Structures = tuple[Structure, ...]
MaskFile = Path | Structure


def file_of(mask: MaskFile) -> Path:
    """The file that a mask is written in."""
    return mask.source if isinstance(mask, Structure) else mask


def levels_of(labels: Image.Image, colours: bool) -> NDArray[Any]:
    """A decoded file of labels as numbers (h, w): its levels as they are, or each colour as 0xrrggbb."""
    if not colours:
        levels = np.asarray(labels.convert("L") if labels.mode == "1" else labels)  # white is 255, and no first label
        return levels if levels.ndim == 2 else np.asarray(labels.convert("L"))
    rgb = np.asarray(labels.convert("RGB")).astype(np.int64)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def number_of(level: int | str) -> int:
    """A level, or a colour such as "#ff0000", as a number."""
    return level if isinstance(level, int) else int(level[1:], 16)


def sums_of(count: int) -> list[int]:
    """Of so many structures, the sum of 2^k that each label stands for, from 1 on."""
    return sorted(range(1, 2**count), key=lambda value: (value.bit_count(), value))


def labels_of(count: int) -> tuple[tuple[int, ...], ...]:
    """The labels of each of so many structures: its own, and those of where others are too."""
    return tuple(tuple(i for i, s in enumerate(sums_of(count), 1) if s >> k & 1) for k in range(count))


def labelled(path: Path, names: Sequence[str], levels: Mapping[str, Sequence[int | str]] | None = None) -> "Structures":
    """The structures of a file of labels; levels: of each name, by number or colour; None: those of sums_of."""
    levels = dict(zip(names, labels_of(len(names)), strict=True)) if levels is None else levels
    named = tuple(sorted({level for of_one in levels.values() for level in of_one}, key=str))
    return tuple(Structure(path, name, levels=tuple(levels[name]), named=named) for name in names)


def in_channels(masks: Sequence["MaskFile"], names: Sequence[str], hint: tuple[str, ...]) -> "tuple[MaskFile, ...]":
    """Masks as a ControlNet with this hint follows them; names: what each shows, where somebody said.

    Raise ValueError for a structure that it has no channel for, and for several pictures to follow.
    """
    if hint == MASK:
        return tuple(masks)
    if hint == PICTURE:
        if len(masks) > 1:
            raise ValueError(f"{masks[0]} and {masks[1]}: the ControlNet follows one picture. Give one for an image.")
        return tuple(Structure(file_of(mask), hint[0], value=0) for mask in masks)
    if not names:
        masks = [one for mask in masks for one in labelled(file_of(mask), hint)]
        names = [one.key for one in masks if isinstance(one, Structure)]
    for mask, name in zip(masks, names, strict=True):
        if name not in hint:
            raise ValueError(
                f"{mask} shows {name!r}, and the ControlNet has channels for {', '.join(hint)}. Leave it out, or name "
                "it so in dataset.json."
            )
    bits = [1 << hint.index(name) for name in names]
    return tuple(
        replace(mask, value=bit) if isinstance(mask, Structure) else Structure(mask, name, value=bit)
        for mask, name, bit in zip(masks, names, bits, strict=True)
    )
