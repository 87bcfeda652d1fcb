"""A mask that is no file of its own: outlines or runs in a table of annotations, or one level of a file of labels."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

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
    level: int = 0  # in a file of labels

    def __str__(self) -> str:
        return f"{self.source} ({self.key})"

    @property
    def name(self) -> str:
        """The name of the file, and which one of it."""
        return f"{self.source.name} ({self.key})"

    def digest(self) -> str:
        """SHA-256 of what is drawn, wherever the file lies."""
        content = sha256_file(self.source) if self.level else [self.size, self.outlines, self.runs]
        return sha256(json.dumps([content, self.level]).encode()).hexdigest()

    def drawn(self, labels: Image.Image | None) -> Image.Image:
        """The mask, mode L, 0 or 255. labels: the decoded file, where it is one level of that."""
        if labels is not None:
            return Image.fromarray((np.asarray(labels) == self.level).astype(np.uint8) * 255)
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


MaskFile = Path | Structure


def file_of(mask: MaskFile) -> Path:
    """The file that a mask is written in."""
    return mask.source if isinstance(mask, Structure) else mask
