"""A picture of mask fidelity: the worst, the median and the best sample of each class, and of the real images.

The asked outline is solid, the found one dashed, so that both can be told apart without colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_us.display.charts import DPI, GRID, MUTED, Margins, new_figure, style, to_picture, write
from ldm_us.evaluation.masks.fidelity import FindLesions
from ldm_us.evaluation.masks.figures import Column
from ldm_us.files.pictures import save_png
from ldm_us.runtime.checks import check_new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL, HEAD = 232, 92  # pixels: the side of an image, and the room above all
AROUND = Margins(left=10, right=10, top=26, bottom=40)  # of an image
PLACES = ("worst", "median", "best")
ASKED, FOUND = "#ffd23f", "#4cc9f0"  # light, on dark images
DASHES: dict[str, tuple[float, Sequence[float]]] = {ASKED: (0, ()), FOUND: (0, (7, 5))}
SHADOW = "#101010"
SYNTHETIC = {"synthetic": "the samples were made by a generative model, not for diagnosis"}


class Shown(NamedTuple):
    """One image of the picture."""

    image: Tensor  # (1, H, W) in [0, 1]
    asked: Tensor  # (1, H, W) in {0, 1}
    found: Tensor  # (1, H, W) in {0, 1}
    dice: float


def check_picture_path(path: Path | None, overwrite: bool) -> None:
    """Refuse a picture that cannot be written, before anything is measured."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--save-grid {path}: {path.parent} is not a folder. Make it first.")
    check_new_file(path, overwrite, "--save-grid")


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
    cells = [(label, i, one[label][i]) for label in samples for one in (samples, real) for i in range(len(PLACES))]
    size = (CELL + AROUND.left + AROUND.right, CELL + AROUND.top + AROUND.bottom)
    with style():
        figure, panels = new_figure(*size, len(cells), 2 * len(PLACES), HEAD, AROUND)
        for panel, (label, i, one) in zip(panels, cells, strict=True):
            write(panel, (0, 8), f"{label}, {PLACES[i]}", 14, MUTED)
            draw_shown(panel, one)
        write(panels[0], (0, 42), "Synthetic samples and the masks they were asked to follow", 17)
        write(panels[len(PLACES)], (0, 42), "Real images and their drawn masks", 17)
        draw_legend(figure, found_by)
        return to_picture(figure)


def draw_shown(panel: Axes, one: Shown) -> None:
    """An image, its two outlines and its Dice."""
    h, w = one.image.shape[-2:]
    panel.imshow(one.image[0].numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, w, h, 0), interpolation="bicubic")
    for mask, colour in ((one.asked, ASKED), (one.found, FOUND)):
        for loop in outlines(mask[0].numpy() > 0):
            panel.plot(*loop.T, color=colour, linestyle=DASHES[colour])
    panel.set(xlim=(0, w), ylim=(h, 0))
    panel.axis("off")
    write(panel, (0, -CELL - 19), f"Dice {one.dice:.2f}{'' if bool(one.found.any()) else ', nothing found'}", 14)


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Every boundary of a mask (H, W) of bools, lesions and holes, as closed polylines (n, 2) of (across, down).

    Pixel (row y, column x) covers [x, x + 1] by [y, y + 1]. The polyline joins the middles of the pixel edges between
    inside and outside, which cuts the corners of the staircase.
    """
    from contourpy import contour_generator

    loops = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
    return [np.asarray(loop) - 0.5 for loop in loops]


def draw_legend(figure: Figure, found_by: str) -> None:
    """What the two outlines are, each stroke on dark as in the images; and a line between samples and real images."""
    from matplotlib.lines import Line2D

    strokes = [Line2D([], [], color=colour, linestyle=DASHES[colour]) for colour in (ASKED, FOUND)]
    names = ["asked, or drawn", f"found by the {found_by}"]
    width, height = figure.get_size_inches() * DPI
    corner = (AROUND.left / width, 1 - 16 / height)
    look = {
        "fontsize": 14,
        "borderpad": 0.5,
        "frameon": True,
        "framealpha": 1,
        "facecolor": SHADOW,
        "labelcolor": "white",
    }
    figure.legend(strokes, names, loc="upper left", bbox_to_anchor=corner, borderaxespad=0, ncols=2, **look)
    figure.add_artist(Line2D([0.5, 0.5], [0, 1 - 50 / height], color=GRID, linewidth=1))
