"""The few figures that tell whether a run has taught what it should: first and last value of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm_us.training.panels import Lines, values_of

KEYS = {
    "vae": (("val_psnr_db", "PSNR, dB", "higher is better"), ("val_l1", "L1, held-out images", "lower is better")),
    "unet": (("val_loss", "validation loss", "lower is better"),),
    "controlnet": (
        ("control_gap", "control gap", "above 0: the mask is used"),
        ("val_loss", "validation loss", "lower is better"),
    ),
}
TRAINING = (("loss", "training loss", "no validation in the log"),)


@dataclass(frozen=True)
class KeyFigure:
    """One row of the summary."""

    name: str
    reading: str  # which way is good
    before: str
    before_step: str
    after: str
    after_step: str


def key_figures(stage: str, lines: Lines) -> list[KeyFigure]:
    """First and last value of what the stage is judged by; of the training loss where nothing was validated."""
    found = [key for key in KEYS[stage] if values_of(lines, key[0])]
    return [key_figure(lines, *key) for key in found or TRAINING]


def key_figure(lines: Lines, key: str, name: str, reading: str) -> KeyFigure:
    """The first value, the last one, and by how much it changed."""
    values: Sequence[tuple[float, float]] = values_of(lines, key)
    if not values:
        return KeyFigure(name, reading, "none", "", "none", "")
    (first_step, first), (last_step, last) = values[0], values[-1]
    if len(values) == 1:
        return KeyFigure(name, reading, f"{first:.4g}", f"step {first_step:,}", "not yet", "")
    after_step = f"step {last_step:,}{change(key, first, last)}"
    return KeyFigure(name, reading, f"{first:.4g}", f"step {first_step:,}", f"{last:.4g}", after_step)


def change(key: str, first: float, last: float) -> str:
    """The change in dB, or in percent for a loss; nothing for a gap, which starts at 0."""
    if not (math.isfinite(first) and math.isfinite(last)):
        return ""
    if key == "val_psnr_db":
        return f", {last - first:+.1f} dB"
    if key == "control_gap" or first == 0:
        return ""
    return f", {100 * (last / first - 1):+.0f}%"
