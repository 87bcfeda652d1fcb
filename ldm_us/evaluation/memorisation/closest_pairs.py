"""The picture of the closest pairs: sample, nearest training image, and the difference of their detail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.records import load_image
from ldm_us.display.charts import INK, MUTED, Margins, new_figure, style, to_picture, write
from ldm_us.evaluation.memorisation.nearest_training import SIDE, best_alignment, details_of, standardised

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSEST = 12  # pairs shown
NOTE = "Shows training images, which may be those of patients: share it only where the licence of the data allows."
EXPLAINED = (
    "Left: the sample. Middle: its nearest training image. Right: the difference of their fine detail,",
    "laid where they match best (even grey: no difference). Each score stands beside its threshold.",
)
CELL, HEAD, ACROSS, LINE = 176, 100, 2, 17  # pixels of an image, above all; pairs in a row; pixels of a line of text
AROUND = Margins(left=10, right=6, top=6, bottom=48)  # of an image, pixels
RED = "#b02020"
LONGEST = 26  # letters of a name below an image
DIFFERENCE_RANGE = 6.0  # standard deviations of the detail between black and white


class Pair(NamedTuple):
    """A sample, its nearest training image, and the score that says so."""

    sample: Path
    training: Path
    score: str
    value: float
    threshold: float

    @property
    def label(self) -> str:
        """The score beside its threshold; the detail as a correlation."""
        if self.score == "detail":
            return f"correlation of detail {1 - self.value:.2f} (a copy: above {1 - self.threshold:.2f})"
        return f"{self.score}, ratio to neighbours {self.value:.2f} (a copy: below {self.threshold:.2f})"


def draw_pairs(pairs: Iterable[Pair], size: int) -> Image.Image:
    """Draw three images for each pair, the closest pair first; flagged ones say so in red."""
    pairs = list(pairs)
    with style():
        shape = (CELL + AROUND.left + AROUND.right, CELL + AROUND.top + AROUND.bottom)
        figure, panels = new_figure(*shape, 3 * len(pairs), 3 * ACROSS, HEAD, AROUND)
        for i, pair in enumerate(pairs):
            draw_pair(panels[3 * i : 3 * i + 3], pair, size)
        write(panels[0], (0, 76), "Samples closest to training images", 20)
        for i, sentence in enumerate((*EXPLAINED, NOTE)):
            write(panels[0], (0, 54 - i * LINE), sentence, 13, RED if sentence == NOTE else MUTED)
        return to_picture(figure)


def draw_pair(panels: Sequence[Axes], pair: Pair, size: int) -> None:
    """Draw three images with two lines of text below."""
    sample, training = (load_image(path, size)[:1] / 2 + 0.5 for path in (pair.sample, pair.training))
    difference, mirrored = detail_difference(sample, training)
    images = (sample, training.flip(-1) if mirrored else training, difference)
    flagged = pair.value < pair.threshold
    names = [shortened(pair.sample.name), shortened(pair.training.name + (" (mirrored)" if mirrored else ""))]
    for panel, image, name in zip(panels, images, [*names, "flagged as a copy" if flagged else ""], strict=True):
        panel.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="bicubic")
        panel.axis("off")
        write(panel, (0, -CELL - LINE), name, colour=RED if panel is panels[2] else INK)
    write(panels[0], (0, -CELL - 2 * LINE), pair.label, colour=RED if flagged else MUTED)


def detail_difference(sample: Tensor, training: Tensor) -> tuple[Tensor, bool]:
    """Subtract the standardised details of two images (1, H, W) where they match best: (1, h, w), 0.5 for none.

    Also say whether the sample matches as its mirror image; the difference is then shown as the sample lies.
    """
    there = details_of(training[None], SIDE, SIDE)[0]
    _, mirrored, alignment = best_alignment(sample, there)
    own = details_of(sample[None], alignment.height, alignment.width)
    one = alignment.of_sample(own.flip(-1) if mirrored else own)
    shape = one.shape
    one, other = (standardised(part).view(shape) for part in (one, alignment.of_training(there[None])))
    difference = torch.clamp(0.5 + (one - other) / DIFFERENCE_RANGE, 0, 1)
    return difference.flip(-1) if mirrored else difference, mirrored


def shortened(name: str) -> str:
    """Cut a name in the middle where it is too long for its image."""
    keep = LONGEST // 2 - 1
    return name if len(name) <= LONGEST else f"{name[:keep]}...{name[-keep:]}"
