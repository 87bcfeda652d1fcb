"""What a room was told becomes the command line of sample.py that draws the same picture."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_us.synthesis.serving.engine import Command

MOST_PICTURES = 16  # of one request
MOST_STEPS = 1000


@dataclass(frozen=True)
class Asked:
    """What all rooms ask for."""

    label: str = ""  # a class of the model; empty: `prompt` says what to draw
    prompt: str = ""
    n: int = 4
    seed: int = 0  # of the first picture, others follow
    steps: int = 20
    watermark: bool = False

    def __post_init__(self) -> None:
        if not self.label and not self.prompt.strip():
            raise ValueError("There is no text to draw. Choose a class, or write a prompt.")

    def commands(self, *more: str | Path) -> list[tuple[str, Command]]:
        """A command for each picture, none with a name; `more` is what a room asks for beside this."""
        name, value = ("--class", self.label) if self.label else ("--prompt", self.prompt)
        what = (f"{name}={value}",) if value.startswith("-") else (name, value)  # not to be taken for an option
        end = ("--steps", str(self.steps), *["--watermark"] * self.watermark)
        seeds = range(self.seed, self.seed + self.n)
        return [("", (*what, *more, "--n", "1", "--seed", str(seed), *end)) for seed in seeds]


def asked(label: Any, prompt: Any, n: Any, seed: Any, steps: Any, watermark: Any) -> Asked:
    """Check what a page sent: anybody may send anything. Raise ValueError, in one sentence."""
    n, steps = whole("How many", n, 1, MOST_PICTURES), whole("Steps", steps, 1, MOST_STEPS)
    seed = whole("The seed", seed, 0, 2**53)  # beyond it a browser has no whole numbers
    return Asked(str(label or ""), str(prompt or ""), n, seed, steps, bool(watermark))


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within limits."""
    if not isinstance(value, int | float) or value != value // 1 or not least <= value <= most:
        raise ValueError(f"{name}: {str(value)[:20]} is not possible. Use a whole number from {least} to {most:,}.")
    return int(value)


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number within limits."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{name}: {str(value)[:20]} is not possible. Use a number from {least:g} to {most:g}.")
    return float(value)
