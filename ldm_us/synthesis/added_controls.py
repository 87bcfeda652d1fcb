"""ControlNets of other model files, each with a picture of its own to follow, added to the control of the mask."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.records import open_image
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.synthesis.weights import read_controlnet


class AddedControl(NamedTuple):
    """A model file with a ControlNet, the picture that this follows, and its weight."""

    path: Path
    hint: Path
    scale: float


def parse_added(values: Sequence[Sequence[str]]) -> list[AddedControl]:
    """--also-control FILE HINT X, as often as given. Raise ValueError for an X that is no finite number."""
    added = []
    for path, hint, text in values:
        try:
            scale = float(text)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise ValueError(f"--also-control {path} {hint} {text}: the weight {text} is not a finite number.")
        added.append(AddedControl(Path(path), Path(hint), scale))
    return added


def load_hint(path: Path, size: int) -> Tensor:
    """A picture as a ControlNet takes it: (1, 3, size, size) in [0, 1], resized by the nearest pixel."""
    picture = open_image(path).convert("RGB").resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 255


def load_added(added: Sequence[AddedControl], model: LatentDiffusion, device: str, size: int) -> list[ControlTerm]:
    """The terms of these ControlNets, for one sample. Raise ValueError for a file that does not fit the model."""
    terms = []
    for path, hint, scale in added:
        controlnet = read_controlnet(path, model, device, "--also-control").controlnet
        assert controlnet is not None
        terms.append(ControlTerm(controlnet, load_hint(hint, size), scale))
    return terms


def added_fields(added: Sequence[AddedControl]) -> list[dict[str, str | float]]:
    """What the fields of a picture say of them."""
    return [
        {
            "file": path.name,
            "sha256": sha256_file(path),
            "hint": hint.name,
            "hint_sha256": sha256_file(hint),
            "scale": scale,
        }
        for path, hint, scale in added
    ]


def added_again(recorded: Sequence[Mapping[str, object]], given: Sequence[AddedControl]) -> list[list[str]]:
    """The values of --also-control that the fields describe, their files among those given.

    Raise ValueError, naming it, for one whose files are not given.
    """
    files = {sha256_file(path): path for control in given for path in (control.path, control.hint)}
    values = []
    for control in recorded:
        lacking = [str(control[name]) for name in ("file", "hint") if control[_digest(name)] not in files]
        if lacking:
            raise ValueError(f"made with --also-control {control['file']} {control['hint']}: give {lacking[0]} again")
        path, hint = (str(files[str(control[_digest(name)])]) for name in ("file", "hint"))
        values.append([path, hint, str(control["scale"])])
    return values


def _digest(name: str) -> str:
    return "sha256" if name == "file" else f"{name}_sha256"
