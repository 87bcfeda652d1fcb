"""A picture of mask fidelity: the worst, the median and the best sample of each class, and of the real images.

The asked outline is solid, the found one dashed, so that both can be told apart without colours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ldm_us.display.axes import Box
from ldm_us.display.canvas import Canvas, length_of
from ldm_us.evaluation.masks.fidelity import FindLesions
from ldm_us.evaluation.masks.figures import Column
from ldm_us.evaluation.masks.outline import outlines
from ldm_us.files.pictures import save_png, to_picture

CELL, GAP, MARGIN = 232, 12, 20  # pixels
CAPTION, HEAD, TITLE = 30, 92, 26  # pixels: under a cell, above all, above the cells of a row
PLACES = ("worst", "median", "best")
ASKED, FOUND = "#ffd23f", "#4cc9f0"  # light, on dark images
DASHES = "7 5"
INK, MUTED, SHADOW = "#1d2125", "#59626b", "#101010"
SYNTHETIC = {"synthetic": "the samples were made by a generative model, not for diagnosis"}


class Shown(NamedTuple):
    """One image of the picture."""

    image: Tensor  # (1, H, W) in [0, 1]
    asked: Tensor  # (1, H, W) in {0, 1}
    found: Tensor  # (1, H, W) in {0, 1}
    dice: float


def check_picture_path(path: Path | None) -> None:
    """Refuse a picture that cannot be written, before anything is measured."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--save-grid {path}: {path.parent} is not a folder. Make it first.")
    if path is not None and path.is_dir():
        raise ValueError(f"--save-grid {path}: is a folder. Give the name of a PNG.")


def chosen(column: Column) -> list[int]:
    """Which images are shown: those of the lowest, the (lower) median and the highest Dice of each class, in order."""
    index = []
    for label in sorted(set(column.labels)):
        members = [i for i, other in enumerate(column.labels) if other == label]
        members.sort(key=lambda i: (float(column.errors.dice[i]), i))
        index += [members[0], members[(len(members) - 1) // 2], members[-1]]
    return index


def shown(column: Column, index: list[int], images: Tensor, masks: Tensor, find: FindLesions) -> dict[str, list[Shown]]:
    """The chosen images and their masks, (len(index), 1, H, W) each, by class, with their lesions found again."""
    rows: dict[str, list[Shown]] = {}
    for i, image, asked, found in zip(index, images, masks, find(images), strict=True):
        rows.setdefault(column.labels[i], []).append(Shown(image, asked, found, float(column.errors.dice[i])))
    return rows


def save_mask_picture(
    samples: Mapping[str, Sequence[Shown]], real: Mapping[str, Sequence[Shown]], path: Path, found_by: str
) -> None:
    """Draw a row for each class, samples at the left and real images at the right, and write it as PNG."""
    save_png(draw_mask_picture(samples, real, found_by), path, SYNTHETIC)


def draw_mask_picture(
    samples: Mapping[str, Sequence[Shown]], real: Mapping[str, Sequence[Shown]], found_by: str
) -> Image.Image:
    """A row for each class of `samples`: three samples, three real images, each with its Dice."""
    columns, row_height = len(PLACES), TITLE + CELL + CAPTION + GAP
    right = MARGIN + columns * (CELL + GAP) + 2 * GAP  # where the real images begin
    canvas = Canvas(right + columns * (CELL + GAP) - GAP + MARGIN, HEAD + len(samples) * row_height)
    draw_legend(canvas, found_by)
    for left, title in (
        (MARGIN, "Synthetic samples and the masks they were asked to follow"),
        (right, "Real images and their drawn masks"),
    ):
        canvas.text((left, HEAD - 14), title, 17, INK)
    for row, label in enumerate(samples):
        top = HEAD + row * row_height
        for left, of_class in ((MARGIN, samples[label]), (right, real[label])):
            for i, (place, one) in enumerate(zip(PLACES, of_class, strict=True)):
                x = left + i * (CELL + GAP)
                canvas.text((x, top + TITLE - 8), f"{label}, {place}", 14, MUTED)
                draw_shown(canvas, one, (x, top + TITLE, x + CELL, top + TITLE + CELL))
    return canvas.picture()


def draw_legend(canvas: Canvas, found_by: str) -> None:
    """What the two outlines are, each stroke on dark as in the images."""
    x = float(MARGIN)
    for name, colour, dashes in (("asked, or drawn", ASKED, ""), (f"found by the {found_by}", FOUND, DASHES)):
        canvas.line([(x, 32), (x + 54, 32)], SHADOW, 18)
        canvas.line([(x + 4, 32), (x + 50, 32)], colour, 2.5, dashes)
        canvas.text((x + 66, 32), name, 15, INK, "lm")
        x += 66 + length_of(name, 15) + 34


def draw_shown(canvas: Canvas, one: Shown, box: Box) -> None:
    """An image, its two outlines and its Dice."""
    canvas.image(box, to_picture(one.image))
    left, top, right, bottom = box
    h, w = one.image.shape[-2:]
    for mask, colour, dashes in ((one.asked, ASKED, ""), (one.found, FOUND, DASHES)):
        for loop in outlines(mask[0].numpy() > 0):
            placed = [(left + x * (right - left) / w, top + y * (bottom - top) / h) for x, y in loop]
            canvas.line(placed, colour, 2, dashes)
    nothing = "" if bool(one.found.any()) else ", nothing found"
    canvas.text((left, bottom + 19), f"Dice {one.dice:.2f}{nothing}", 14, INK)
