"""What one run of the benchmark measures: sizes, repeats, and where the weights of both sides lie."""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.speed.command_line import QUICK


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


def settings_of(options: argparse.Namespace, weights: Path, theirs: Path, threads: int) -> Settings:
    """What the options stand for. Raise ValueError for numbers below 1."""
    for name in ("size", "unet_batch", "training_batch", "epoch_batch", "images", "sample_steps", "rounds", "threads"):
        value = getattr(options, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: use 1 or more.")
    if options.clock == "cpu" and not options.device.startswith("cpu"):
        raise ValueError(f"--clock cpu: leaves out what {options.device} does. Leave the option out.")
    given: dict[str, Any] = {
        "size": options.size,
        "batches": options.unet_batch,
        "training_batches": options.training_batch,
        "images": options.images,
        "steps": options.sample_steps,
        "rounds": options.rounds,
    }
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value}
    settings = Settings(weights, theirs, weights.parent, options.device, threads=threads, clock=options.clock)
    sizes = (QUICK if options.quick else {}) | own | {"epoch_batch": options.epoch_batch, "compiled": options.compile}
    settings = replace(settings, **sizes)
    if settings.images % settings.epoch_batch:
        raise ValueError(f"--images {settings.images}: use a multiple of --epoch-batch, {settings.epoch_batch}.")
    return settings
