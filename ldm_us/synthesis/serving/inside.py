"""How a sample came about: every step, attention to each word, what the ControlNet added, and the step's equation."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

import ldm_us
from ldm_us.diffusion.ddim import ddim_step
from ldm_us.diffusion.ddpm import ddpm_step
from ldm_us.diffusion.dpm_solver import dpm_step
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import computing
from ldm_us.files.pictures import to_picture
from ldm_us.synthesis.drawing import of_edition, walk
from ldm_us.synthesis.explain import decoded, record, spread, word_maps
from ldm_us.synthesis.recipe import FromNoise
from ldm_us.synthesis.serving.engine import Command, Engine
from ldm_us.synthesis.serving.single import settle_one

STEPS: dict[str, Callable] = {"dpm": dpm_step, "ddim": ddim_step, "ddpm": ddpm_step}
COMPARED = (  # side by side
    ("--guidance", "guidance", (1.0, 3.0, 7.5)),
    ("--control-scale", "weight of the mask", (0.0, 1.0, 2.0)),
)
TAG = re.compile(r"# .*(Eq\.|algorithm) \d")


class Inside(NamedTuple):
    """What was seen of a sample."""

    frames: list[tuple[int, Image.Image, Image.Image]]  # t; z_t after its step and the predicted z_0, both decoded
    words: list[tuple[str, Image.Image]]  # of the prompt, with where the picture attends to each
    levels: list[str]  # of the ControlNet; none where it did not act
    residuals: list[tuple[int, list[float]]]  # t, and the root mean square of each level
    code: str  # file of the step
    line: int  # of its equation
    lines: list[tuple[int, str]]  # of the step's function, with their numbers


def look(engine: Engine, command: Command) -> Inside:
    """Draw a sample from noise again, the same bits, and keep what its steps pass through."""
    _, one, (_, recipe, added, *_) = settle_one(
        engine.options_of(command), engine.model, engine.weights_fields, engine.words
    )
    if not isinstance(recipe.begin, FromNoise):
        raise ValueError("The last picture is an edit, and this shows the way from noise: draw a new one first.")
    with torch.no_grad(), computing(of_edition(engine.model, recipe.edition), recipe.sampling) as model:
        with record(model) as seen:
            steps = list(walk(model, [one], recipe, added, generators_of([one.seed])))
        pairs = [decoded(model, torch.cat([step.z, step.z_0_hat])) for step in steps]
    frames = [(step.t, z, z_0_hat) for step, (z, z_0_hat) in zip(steps, pairs, strict=True)]
    height, width = frames[-1][1].height, frames[-1][1].width
    attended = [(word, to_picture(part[None])) for word, part in word_maps(seen, (height, width), one.prompt)]
    chosen = [seen.control[i] for i in spread(len(seen.control))] if seen.control else []
    levels = list(chosen[0][1]) if chosen else []
    residuals = [(t, [of[level] for level in levels]) for t, of in chosen]
    return Inside(frames, attended, levels, residuals, *equation_of(recipe.sampling.sampler))


def equation_of(sampler: str) -> tuple[str, int, list[tuple[int, str]]]:
    """The step of a sampler: its file, the line of its last tagged equation, and the code below its docstring."""
    lines, first = inspect.getsourcelines(STEPS[sampler])
    begin = max(i for i, line in enumerate(lines) if '"""' in line) + 1
    numbered = list(enumerate((line.rstrip("\n") for line in lines[begin:]), first + begin))
    path = Path(inspect.getfile(STEPS[sampler])).relative_to(Path(ldm_us.__file__).parents[1])
    return path.as_posix(), [number for number, line in numbered if TAG.search(line)][-1], numbered


def variants(command: Command) -> list[tuple[str, Command]]:
    """Commands that differ from one in guidance alone, or in the weight of the mask alone, with what differs."""
    found = []
    for option, name, values in COMPARED:
        if option == "--guidance" or "--mask" in command:
            found += [(f"{name} {value:g}", (*command, option, f"{value:g}")) for value in values]
    return found
