"""What a room was told becomes the command line of sample.py that draws the same picture."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_PICTURES = 16  # of one request
MOST_STEPS = 1000

Words = tuple[str | Path, ...]  # of a command line; files as paths


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

    def commands(self, *more: str | Path | float) -> list[Words]:
        """A command for each picture; `more` is what a room asks for beside this."""
        what = f"--class={self.label}" if self.label else f"--prompt={self.prompt}"
        rest = [one if isinstance(one, Path) else f"{one:g}" if isinstance(one, float) else one for one in more]
        end = ["--watermark"] * self.watermark
        numbers = range(self.seed, self.seed + self.n)
        return [(what, *rest, "--n=1", f"--seed={seed}", f"--steps={self.steps}", *end) for seed in numbers]


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


def shown(words: Sequence[str | Path]) -> str:
    """The command as a user types it; of files the names alone, for where they lie is the server's own business."""
    typed = [part for word in words for part in (word.partition("=")[::2] if is_pair(word) else [word])]
    return shlex.join(["python", "sample.py", *(one.name if isinstance(one, Path) else one for one in typed)])


def is_pair(word: str | Path) -> bool:
    """Whether --option=value may be written as two words: not where the value looks like an option itself."""
    return (
        isinstance(word, str) and word.startswith("--") and "=" in word and word.partition("=")[2][:1] not in ("-", "")
    )
