"""Frozen weights in half precision: cast once before the first step, float32 again from their file for the result."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import open_model_file
from ldm_us.networks.precision import HALF, cast_weights


def cast_frozen(model: LatentDiffusion, precision: str, weights: Path | None, parts: Sequence[str]) -> None:
    """Cast what is frozen in these parts and has its float32 in the file `weights`, where precision is a half one."""
    if precision not in HALF or weights is None:
        return
    with open_model_file(weights) as file:
        names = {name for name in file.keys() if name.startswith(tuple(parts))}  # noqa: SIM118
    cast_weights(model, precision, names)


def restore_frozen(model: LatentDiffusion, weights: Path | None, sha256: str) -> None:
    """Give what was cast its float32 again, from the file that the run started from."""
    cast = {name: value for name, value in model.named_parameters() if value.dtype in HALF.values()}
    if not cast:
        return
    assert weights is not None, "weights from nowhere else are never cast"
    check_unchanged(weights, sha256)
    base = open_model_file(weights)
    for name, value in cast.items():
        value.data = base.get_tensor(name).to(value.device, torch.float32)


def check_unchanged(weights: Path, sha256: str) -> None:
    """Refuse to mix trained weights with frozen ones of another file than the run started from."""
    if not weights.is_file() or sha256_file(weights) != sha256:
        raise ValueError(
            f"{weights}: has changed since the run started, and the result needs its frozen parts. Put the file back "
            "(the run is saved) and give the same command again."
        )
