"""The few figures that tell whether a run has taught what it should: first and last value of each."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ldm_us.training.curves import Lines, Point, values_of

KEYS = {
    "vae": (("val_psnr_db", "PSNR, dB", "higher is better"), ("val_l1", "L1, held-out images", "lower is better")),
    "unet": (("val_loss", "validation loss", "lower is better"),),
    "controlnet": (
        ("control_gap", "control gap", "above 0: the mask is used"),
        ("val_loss", "validation loss", "lower is better"),
    ),
}
TRAINING = (("loss", "training loss", "no validation in the log"),)


class KeyFigure(NamedTuple):
    """One row of the summary."""

    name: str
    reading: str  # which way is good
    values: Sequence[Point]  # the first and the last, or one, or none
    change: str


def key_figures(stage: str, lines: Lines) -> list[KeyFigure]:
    """First and last value of what the stage is judged by; of the training loss where nothing was validated."""
    found = [key for key in KEYS[stage] if values_of(lines, key[0])]
    figures = []
    for key, name, reading in found or TRAINING:
        values = values_of(lines, key)
        values = [*values[:1], *values[1:][-1:]]
        figures.append(KeyFigure(name, reading, values, change(key, *(value for _, value in values))))
    return figures


def change(key: str, first: float = math.nan, last: float = math.nan) -> str:
    """The change in dB, or in percent for a loss; nothing for a gap, which starts at 0."""
    if not (math.isfinite(first) and math.isfinite(last)):
        return ""
    if key == "val_psnr_db":
        return f", {last - first:+.1f} dB"
    if key == "control_gap" or first == 0:
        return ""
    return f", {100 * (last / first - 1):+.0f}%"
