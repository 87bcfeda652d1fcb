"""What one run of the benchmark measures: sizes, repeats, and where the weights of both sides lie."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """Passed from the command to the process that measures a part, as JSON."""

    weights: Path  # a model file of ours, ControlNet included
    folder: Path  # the same weights for diffusers
    scratch: Path  # for what a part writes
    device: str = "cpu"
    dtype: str = "float32"  # of weights in inference; bfloat16 in training is autocast over float32
    size: int = 512  # pixels of a side
    rounds: int = 5  # timed calls of each side
    batches: tuple[int, ...] = (1, 2, 8)  # of the UNet
    training_batches: tuple[int, ...] = (1, 4)
    steps: tuple[int, ...] = (20, 50)  # of whole samples
    sample_rounds: int = 2
    turns: int = 2  # processes of each side, in turn, where both do not fit into memory
    turn_rounds: int = 2  # timed calls in each of those
    images: int = 32  # of the epoch
    epoch_batch: int = 1
    compiled: bool = False
    threads: int = 1
    clock: str = "wall"  # or "cpu": seconds of the processors, for a machine that does other work too

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that `dtype` names."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """From that text."""
        values: dict[str, Any] = json.loads(text)
        paths = {name: Path(values[name]) for name in ("weights", "folder", "scratch")}
        lists = {name: tuple(values[name]) for name in ("batches", "training_batches", "steps")}
        return cls(**(values | paths | lists))
