"""How a sample came about: every step, attention to each word, what the ControlNet added, and the step's equation."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image

import ldm_us
from ldm_us.diffusion.ddim import ddim_step
from ldm_us.diffusion.ddpm import ddpm_step
from ldm_us.diffusion.dpm_solver import dpm_step
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Step, computing
from ldm_us.files.pictures import to_picture
from ldm_us.networks.clip import token_words
from ldm_us.studio.commands import Words
from ldm_us.studio.engine import Engine, Report, seeing_calls
from ldm_us.synthesis.drawing import of_edition, walk
from ldm_us.synthesis.explain import Recording, decoded, record, spread
from ldm_us.synthesis.recipe import FromNoise

STEPS: dict[str, Callable] = {"dpm": dpm_step, "ddim": ddim_step, "ddpm": ddpm_step}
COMPARED = (("--guidance", (1.0, 3.0, 7.5)), ("--control-scale", (0.0, 1.0, 2.0)))  # the values side by side


class Frame(NamedTuple):
    """One step."""

    t: int
    z: Image.Image  # z_t after it, decoded
    z_0_hat: Image.Image  # z_0 as predicted in it, decoded


class Inside(NamedTuple):
    """What was seen of a sample."""

    frames: list[Frame]
    words: list[tuple[str, Image.Image]]  # of the prompt, with where the picture attends to each
    levels: list[str]  # of the ControlNet; none where it did not act
    residuals: list[tuple[int, list[float]]]  # t, and the root mean square of each level
    sampler: str


class Source(NamedTuple):
    """Where a step's equation stands, and the code around it."""

    file: str
    line: int
    lines: list[tuple[int, str]]


def look(engine: Engine, words: Words, report: Report) -> Inside:
    """Draw a sample from noise again, the same bits, and keep what its steps pass through."""
    _, _, one, (recipe, added, *_) = engine.settled(words)
    if not isinstance(recipe.begin, FromNoise):
        raise ValueError(
            "This shows the way from noise to a picture. The last picture is an edit: draw a new one first."
        )
    model = of_edition(engine.model, recipe.edition)
    generators = generators_of([one.seed])
    with torch.no_grad(), seeing_calls(model.unet, report), computing(model, recipe.sampling) as model:
        with record(model) as seen:
            steps: list[Step] = list(walk(model, [one], recipe, added, generators))
        pairs = [decoded(model, torch.cat([step.z, step.z_0_hat])) for step in steps]
    frames = [Frame(step.t, *pair) for step, pair in zip(steps, pairs, strict=True)]
    chosen = [seen.control[i] for i in spread(len(seen.control))] if seen.control else []
    levels = list(chosen[0][1]) if chosen else []
    residuals = [(t, [of[level] for level in levels]) for t, of in chosen]
    return Inside(frames, attention(seen, frames[-1].z.size, one.prompt), levels, residuals, recipe.sampling.sampler)


def attention(seen: Recording, size: tuple[int, int], prompt: str) -> list[tuple[str, Image.Image]]:
    """A map of the picture's size per word: black where it attends least, white where most."""
    (maps,) = F.interpolate(seen.maps().cpu(), size=size[::-1], mode="bilinear", align_corners=False)
    words = token_words(prompt)[: len(maps) - seen.learned - 2]
    chosen = maps[1 + seen.learned : 1 + seen.learned + len(words)]
    scaled = [(one - one.min()) / (one.max() - one.min()).clamp(min=1e-12) for one in chosen]
    return [(word, to_picture(one[None])) for word, one in zip(words, scaled, strict=True)]


def equation_of(sampler: str) -> Source:
    """The step of a sampler: its code, with the line of the last tagged equation."""
    lines, first = inspect.getsourcelines(STEPS[sampler])
    numbered = list(enumerate((line.rstrip("\n") for line in lines), first))
    tagged = [number for number, line in numbered if re.search(r"# .*(Eq\.|algorithm) \d", line)]
    path = Path(inspect.getfile(STEPS[sampler])).relative_to(Path(ldm_us.__file__).parents[1])
    return Source(path.as_posix(), (tagged or [first])[-1], numbered)


def variants(words: Words, masked: bool) -> list[tuple[str, list[tuple[str, Words]]]]:
    """Rows of commands that differ from one in guidance alone, or in the weight of the mask alone."""
    return [
        (option, [(f"{value:g}", (*without(words, option), f"{option}={value:g}")) for value in values])
        for option, values in COMPARED
        if masked or option != "--control-scale"
    ]


def without(words: Words, option: str) -> Words:
    """A command without an option."""
    return tuple(word for word in words if not str(word).startswith(f"{option}="))
