"""The picture of the closest pairs: sample, nearest training image, and the difference of their detail."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ldm_us.data.records import load_image
from ldm_us.evaluation.memorisation.nearest_training import SIDE, best_alignment, details_of, standardised
from ldm_us.files.pictures import to_picture

CLOSEST = 12  # pairs shown
NOTE = "Shows training images, which may be those of patients: share it only where the licence of the data allows."
CELL, GAP, ACROSS = 176, 6, 2  # pixels of an image, between images, and blocks in a row
LINE = 17  # pixels of a line of text
INK, GREY, RED, PAPER = (25, 25, 25), (105, 105, 105), (176, 32, 32), (255, 255, 255)
DIFFERENCE_RANGE = 6.0  # standard deviations of the detail between black and white


class Pair(NamedTuple):
    """A sample, its nearest training image, and the score that says so."""

    sample: Path
    training: Path
    score: str
    value: float
    threshold: float

    @property
    def flagged(self) -> bool:
        """Whether the sample counts as a copy."""
        return self.value < self.threshold

    @property
    def label(self) -> str:
        """The score beside its threshold; the detail as a correlation."""
        if self.score == "detail":
            return f"correlation of detail {1 - self.value:.2f} (a copy: above {1 - self.threshold:.2f})"
        return f"{self.score}, ratio to neighbours {self.value:.2f} (a copy: below {self.threshold:.2f})"


def draw_pairs(pairs: Iterable[Pair], size: int) -> Image.Image:
    """Draw blocks of three images, the closest pair first; flagged ones say so in red."""
    blocks = [draw_pair(pair, size) for pair in pairs]
    width, height = blocks[0].size
    rows = -(-len(blocks) // ACROSS)
    edge, top, bottom = 3 * GAP, 5 * LINE, 2 * LINE
    full = (2 * edge + ACROSS * width + (ACROSS - 1) * 3 * GAP, top + rows * (height + 2 * GAP) + bottom)
    sheet = Image.new("RGB", full, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((edge, GAP * 2), "Samples closest to training images", INK, ImageFont.load_default(20))
    explained = "Left: the sample. Middle: its nearest training image. Right: the difference of their fine detail,"
    draw.text((edge, GAP * 2 + 28), explained, GREY, ImageFont.load_default(13))
    rest = "laid where they match best (even grey: no difference). Each score stands beside its threshold."
    draw.text((edge, GAP * 2 + 28 + LINE), rest, GREY, ImageFont.load_default(13))
    for i, block in enumerate(blocks):
        x, y = i % ACROSS, i // ACROSS
        sheet.paste(block, (edge + x * (width + 3 * GAP), top + y * (height + 2 * GAP)))
    draw.text((edge, full[1] - bottom), NOTE, RED, ImageFont.load_default(13))
    return sheet


def draw_pair(pair: Pair, size: int) -> Image.Image:
    """Draw one block: three images with two lines of text below."""
    sample, training = (load_image(path, size)[:1] / 2 + 0.5 for path in (pair.sample, pair.training))
    difference, mirrored = detail_difference(sample, training)
    pictures = [to_picture(sample), to_picture(training.flip(-1) if mirrored else training), to_picture(difference)]
    block = Image.new("RGB", (3 * CELL + 2 * GAP, CELL + 2 * LINE + GAP), PAPER)
    for i, picture in enumerate(pictures):
        block.paste(ImageOps.fit(picture.convert("L"), (CELL, CELL), Image.Resampling.BICUBIC), (i * (CELL + GAP), 0))
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(12)
    draw.text((0, CELL + 3), shortened(pair.sample.name, CELL, font), INK, font)
    name = pair.training.name + (" (mirrored)" if mirrored else "")
    draw.text((CELL + GAP, CELL + 3), shortened(name, CELL, font), INK, font)
    if pair.flagged:
        draw.text((2 * (CELL + GAP), CELL + 3), "flagged as a copy", RED, font)
    draw.text((0, CELL + 3 + LINE), pair.label, RED if pair.flagged else GREY, font)
    return block


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


def shortened(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Cut a name in the middle to fit the width."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 4 and font.getlength(f"{text[: keep // 2]}...{text[-(keep // 2) :]}") > width:
        keep -= 1
    return f"{text[: keep // 2]}...{text[-(keep // 2) :]}"
