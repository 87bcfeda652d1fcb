"""Subjects become samples here: prompt, mask and seed -> image, with the same bits alone, in a batch or in any process.

Convolutions and matrix products round differently for another batch size, another place in a batch and another number
of threads. So every network call holds one sample (with guidance: its unconditional and its conditional half), and the
number of threads is a setting.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Step, generate


@dataclass(frozen=True)
class Settings:
    """What all samples of a call share. With weights, prompt, mask and seed it fixes every bit of a picture."""

    size: int  # pixels along one side
    guidance: float  # s, weight of the text
    control_scale: float  # weight of the mask
    negative_prompt: str = ""
    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    precision: str = "fp32"  # or bf16
    threads: int = 1  # of the CPU; sums are split among them
    exact: bool = True  # one sample in a network call; False: a whole batch, and the last bits depend on it


class Wanted(NamedTuple):
    """What one sample has for itself."""

    prompt: str
    seed: int
    mask: Tensor | None  # (1, H, W) in {0, 1}


def draw_images(
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    settings: Settings,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """n samples -> images (n, 3, H, W) in [0, 1] on the CPU. Either all have a mask or none has."""
    together = 1 if settings.exact else len(wanted)
    images = []
    with cpu_threads(settings.threads):
        for start in range(0, len(wanted), together):
            images.append(_draw_together(model, wanted[start : start + together], settings, on_step).cpu())
    return torch.cat(images)


def _draw_together(
    model: LatentDiffusion, wanted: Sequence[Wanted], settings: Settings, on_step: Callable[[Step], None] | None
) -> Tensor:
    masks = [sample.mask for sample in wanted if sample.mask is not None]
    with autocast(model, settings):
        return generate(
            model,
            [sample.prompt for sample in wanted],
            negative_prompts=settings.negative_prompt,
            masks=torch.stack(masks) if masks else None,
            seeds=[sample.seed for sample in wanted],
            size=settings.size,
            sampler=settings.sampler,
            steps=settings.steps,
            eta=settings.eta,
            guidance=settings.guidance,
            control_scale=settings.control_scale,
            on_step=on_step,
        )


def autocast(model: LatentDiffusion, settings: Settings) -> torch.autocast:
    """Inside, the networks compute in the precision of the settings."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16")


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Inside, PyTorch computes with `count` threads on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settings_from_text(fields: dict[str, str]) -> Settings:
    """Undo str() of each field. Raise ValueError, naming it, for one that is missing or no value."""
    kinds: dict[str, Callable[[str], object]] = {"int": int, "float": float, "str": str, "bool": _truth}
    values = {}
    for field in dataclasses.fields(Settings):
        kind = field.type if isinstance(field.type, str) else field.type.__name__
        try:
            values[field.name] = kinds[kind](fields[field.name])
        except (KeyError, ValueError) as error:
            raise ValueError(f"the field {field.name} is missing or is no {kind}") from error
    return Settings(**values)  # type: ignore[arg-type]


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"
