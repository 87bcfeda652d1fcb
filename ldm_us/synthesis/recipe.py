"""What all samples of a call share: how they are drawn, what they begin from, which further ControlNets act.

A Recipe is made once from the command line, written into every picture as one JSON field, and read back from it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_us.config import ASPECTS, ITERATIONS, LIMITS, STRENGTH
from ldm_us.data.framing import Frame, as_frame, fit_by
from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import Schedule
from ldm_us.diffusion.editing import first_step
from ldm_us.diffusion.sampling import Sampling
from ldm_us.files.atomic import sha256_file
from ldm_us.files.json_values import from_json, parse_json
from ldm_us.synthesis.old_fields import settings_of_old_fields
from ldm_us.synthesis.prompt_weights import plain_text

Given = Mapping[str, Sequence[Path]]  # the files of each option of the command line, by its name: init, also_control


@dataclass(frozen=True)
class FromNoise:
    """Begin from noise that the sample's own seed draws."""


@dataclass(frozen=True)
class FromImage:
    """Begin from an image, noised part of the way (SDEdit)."""

    init: Path
    strength: float = STRENGTH  # share of the steps that are walked

    def __post_init__(self) -> None:
        first_step(self.strength, 1)


@dataclass(frozen=True)
class Region:
    """Draw a region of an image anew (RePaint)."""

    init: Path
    inpaint: Path  # the region, white on black
    resample: int = 1  # times each step is taken
    paste: bool = True  # show the image's own pixels outside; False: its reconstruction


@dataclass(frozen=True)
class Inversion:
    """Begin from the noise that leads to an image (DDIM inversion)."""

    init: Path
    strength: float = 1.0
    iterations: int = ITERATIONS
    source_prompt: str | None = None  # what the image shows; None: what the sample is to show
    source_mask: Path | None = None  # its lesion

    def __post_init__(self) -> None:
        first_step(self.strength, 1)


Beginning = FromNoise | FromImage | Region | Inversion
EDITION = 2  # the newest
# Fields that JSON has where they are not these.
RARE: dict[str, Any] = {"aspect": "squash", "edition": 1, "prompt_weights": False, "long_prompts": None}
SETTINGS = {"sampling", "negative_prompt", "begin", "controls", *RARE}  # the tables of a recipe in JSON
BEGINNINGS: dict[str, Any] = {"noise": FromNoise, "image": FromImage, "region": Region, "inversion": Inversion}


@dataclass(frozen=True)
class AddedControl:
    """A model file with a ControlNet, the picture that this follows, and its weight."""

    path: Path
    hint: Path
    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"--also-control {self.path} {self.hint} {self.scale}: give a finite weight.")


@dataclass(frozen=True)
class Recipe:
    """With weights, prompt, mask and seed it fixes every bit of a picture."""

    sampling: Sampling = field(default_factory=Sampling)
    negative_prompt: str = ""
    begin: Beginning = FromNoise()
    controls: tuple[AddedControl, ...] = ()
    aspect: str = "squash"  # of ASPECTS: how masks, hints and the image to edit come into the size of the samples
    # 1: any grid spaced by floor(T / steps), RePaint's last noise from DDIM's last level, the last 32 bits of a seed
    edition: int = EDITION
    prompt_weights: bool = False  # read (word:1.3) in prompts, see prompt_weights.py
    long_prompts: int | None = None  # chunks of 75 tokens that a prompt may have; None: the model's own

    def __post_init__(self) -> None:
        if self.sampling.sampler == "dpm" and isinstance(self.begin, Region):
            raise ValueError("--inpaint changes what a step has made, which --sampler dpm remembers: use ddim or ddpm.")
        if self.aspect not in ASPECTS:
            raise ValueError(f"aspect {self.aspect} of the settings is not known here: made by a newer version?")
        if self.edition not in range(1, EDITION + 1):
            raise ValueError(f"edition {self.edition} of the settings is not known here: made by a newer version?")
        if self.long_prompts not in (None, *range(1, LIMITS["chunks"] + 1)):
            raise ValueError(f"--long-prompts {self.long_prompts}: use 1 to {LIMITS['chunks']} chunks of 75 tokens.")

    def settled(self, schedule: Schedule, last_seed: int) -> "Recipe":
        """In the oldest edition that draws the same: its folders go on, and older software knows its pictures.

        last_seed: the largest that is asked for.
        """
        steps, region = self.sampling.steps, isinstance(self.begin, Region) and self.begin.resample > 1
        older = dataclasses.replace(schedule, whole_spacing=True)
        same = not region and last_seed < 2**32 and ddim_timesteps(older, steps) == ddim_timesteps(schedule, steps)
        return dataclasses.replace(self, edition=1) if same else self

    def plain(self, prompt: str) -> str:
        """The words of a prompt, without weights where these are read."""
        return plain_text(prompt) if self.prompt_weights else prompt

    @property
    def size(self) -> Frame:
        """Of the samples. Raise ValueError where it is missing: sample.py writes its settings resolved."""
        if self.sampling.size is None:
            raise ValueError("the field size is missing")
        return as_frame(self.sampling.size)

    def frame(self, picture: Image.Image) -> Frame:
        """How a mask, a hint or an image comes into the size of the samples."""
        return fit_by(self.aspect, self.size, *picture.size)

    def at(self, size: int | tuple[int, int] | None) -> "Recipe":
        """The same at another size; None: at its own."""
        sampling = dataclasses.replace(self.sampling, size=size)
        return self if size is None else dataclasses.replace(self, sampling=sampling)

    @property
    def draws_no_noise(self) -> bool:
        """Whether the seed changes nothing: the noise comes from the image, or there is none."""
        return isinstance(self.begin, Inversion) or (isinstance(self.begin, FromImage) and self.begin.strength == 0)

    @property
    def walked_steps(self) -> int:
        """How many Steps a sample takes: all, but for an image that is noised or inverted part of the way."""
        steps = self.sampling.steps
        part = isinstance(self.begin, FromImage | Inversion)
        return max(steps - first_step(self.begin.strength, steps), 1) if part else steps  # type: ignore[union-attr]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; files are named and hashed."""
        (kind,) = [name for name, of_kind in BEGINNINGS.items() if type(self.begin) is of_kind]
        sampling = dataclasses.asdict(self.sampling)
        if self.sampling.tile is None:  # a field of newer software alone: older reads all other pictures
            del sampling["tile"]
        return {name: getattr(self, name) for name, usual in RARE.items() if getattr(self, name) != usual} | {
            "sampling": sampling,
            "negative_prompt": self.negative_prompt,
            "begin": {"from": kind} | _plain(self.begin),
            "controls": [_plain(control) for control in self.controls],
        }


def read_recipe(fields: Mapping[str, Any], given: Given, digest: Callable[[Path], str] = sha256_file) -> Recipe:
    """Undo to_dict for the fields of a picture, its files found by their digests among those given.

    Raise ValueError for a file that is not given, or is another one, and for a field that has no such value.
    """
    try:
        values = settings_of(fields)
        if unknown := sorted(values.keys() - SETTINGS):
            raise ValueError(f"the field {unknown[0]} is not known here: made by a newer version?")
        begin = dict(values["begin"])
        kind = BEGINNINGS[begin.pop("from")]
        return Recipe(
            from_json(Sampling, values["sampling"]),
            str(values["negative_prompt"]),
            from_json(kind, _with_files(begin, given, digest)),
            tuple(from_json(AddedControl, _with_files(each, given, digest)) for each in values["controls"]),
            **{name: values.get(name, usual) for name, usual in RARE.items()},
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the settings are no Recipe ({error!r})") from error


def settings_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the fields of a picture, of a line of a manifest or of a folder's command; also of old ones."""
    if "settings" not in fields:
        return settings_of_old_fields(fields)
    settings = fields["settings"]
    found = parse_json(settings) if isinstance(settings, str) else settings
    if not isinstance(found, dict):
        raise ValueError("the settings are no table")
    return found


def edited_image(fields: Mapping[str, Any]) -> str | None:
    """SHA-256 of the image that a sample edits."""
    if "settings" not in fields:
        return fields.get("init_sha256")
    found = settings_of(fields)["begin"].get("init")
    return None if found is None else str(found["sha256"])


def _plain(values: Any) -> dict[str, Any]:
    """The fields of a dataclass ready for JSON: of a file its name and digest."""
    return {
        name: {"file": value.name, "sha256": sha256_file(value)} if isinstance(value, Path) else value
        for name, value in vars(values).items()
    }


def _with_files(values: Mapping[str, Any], given: Given, digest: Callable[[Path], str]) -> dict[str, Any]:
    """The values with the given files in place of names and digests."""
    is_control = "hint" in values
    found = {}
    for name, value in values.items():
        option = "also_control" if is_control else name
        found[name] = _same_file(option, value, given.get(option, ()), digest) if isinstance(value, dict) else value
    return found


def _same_file(option: str, recorded: Any, given: Sequence[Path], digest: Callable[[Path], str]) -> Path:
    name, sha256 = recorded["file"], recorded["sha256"]
    for path in given:
        if digest(path) == sha256:
            return path
    option = f"--{option.replace('_', '-')}"
    made = f"made with {option} {name} ({sha256[:12]})"
    if len(given) == 1:
        raise ValueError(f"{made}, but {given[0]} is {digest(given[0])[:12]}")
    raise ValueError(f"{made}: give that file with {option}")
