"""Checks of command-line values that several commands share; each raises ValueError with one sentence."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def check_device(device: str) -> None:
    """Refuse a device that this machine, or this build of PyTorch, does not have."""
    import torch  # seconds: a command line is read before

    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("meta tensors hold no numbers")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: not available here. Use cpu, or a GPU that PyTorch sees.") from error


def check_seed(seed: int) -> None:
    """Refuse a seed that a torch.Generator cannot take."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: use 0 up to 2^63 - 1.")


def check_words(options: Mapping[str, Any]) -> None:
    """Check what means one thing in every command that has it: --device, --seed, and counts."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("n", "size", "steps", "batch", "workers", "two_sample_steps"):
        if given.get(name, 1) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {given[name]}: use 1 or more.")
    check_seed(given.get("seed", 0))
    check_device(given.get("device", "cpu"))


def check_finite(options: Mapping[str, float | None]) -> None:
    """Refuse nan and inf, which argparse reads as numbers; None is no number at all."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} {value}: use a finite number.")


def check_new_file(path: Path | None, overwrite: bool, option: str = "--out") -> None:
    """Refuse a result that would take the place of a folder, or unasked of a file; None is no result."""
    if path is not None and path.is_dir():
        raise ValueError(f"{option} {path}: is a folder. Give the name of a file, such as {path / 'result'}.")
    if path is not None and path.exists() and not overwrite:
        raise ValueError(f"{option} {path}: exists. Choose another name, or add --overwrite.")


def check_extra(name: str, *packages: str) -> None:
    """Raise ValueError, naming the extra of setup.cfg that brings them, unless the packages are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"{missing[0]} is not installed. Install the extra {name}: `pip install -e '.[{name}]'`.")
