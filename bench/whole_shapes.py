"""The shapes of a whole model: what every module takes and gives, seen by hooks on the meta device.

There tensors have shapes and no values, so that Stable Diffusion 1.5 is built and called in seconds and in no memory.
"""

import re
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm_us.config import ModelConfig
from ldm_us.diffusion.model import LatentDiffusion

Shape = tuple[int, ...]  # without the batch


class Seen(NamedTuple):
    """What one call of a module took and gave."""

    took: Shape
    gave: Shape


@cache
def shapes_of(config: ModelConfig) -> dict[str, list[Seen]]:
    """Call every part of a model once, without values: -> what each module took and gave, by its name."""
    seen: dict[str, list[Seen]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                seen.setdefault(name, []).append(Seen(tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

        return hook

    with torch.device("meta"), torch.no_grad():
        model = LatentDiffusion(config)
        controlnet = model.add_controlnet()
        for name, module in model.named_modules():
            module.register_forward_hook(watch(name))
        x = torch.empty(1, 3, config.image_size, config.image_size)
        z_0 = model.vae.encode(x).mean
        t, hint = torch.zeros(1, dtype=torch.int64), torch.empty_like(x)
        context = model.text(torch.zeros(1, config.text.length, dtype=torch.int64))
        model.unet(z_0, t, context, controlnet(z_0, t, context, hint))
        model.vae.decode(z_0)
    return seen


def one(seen: dict[str, list[Seen]], name: str) -> Seen:
    """The only call of a module."""
    (call,) = seen[name]
    return call


def levels_of(seen: dict[str, list[Seen]], part: str) -> list[list[tuple[Seen, bool]]]:
    """The blocks of each level of an encoder or decoder, and whether a transformer follows."""
    rows: list[list[tuple[Seen, bool]]] = []
    while f"{part}.levels.{len(rows)}.res.0" in seen:
        level = f"{part}.levels.{len(rows)}"
        count = sum(bool(re.fullmatch(rf"{re.escape(level)}\.res\.\d+", name)) for name in seen)
        rows.append([(one(seen, f"{level}.res.{j}"), f"{level}.transformers.{j}" in seen) for j in range(count)])
    return rows


def encoder_rows(seen: dict[str, list[Seen]], part: str) -> list[list[tuple[Seen, bool]]]:
    """The skips of an encoder, a row for each resolution: what enters a level, and what its blocks give."""
    rows = levels_of(seen, part)
    firsts = [one(seen, f"{part}.conv_in"), *(one(seen, f"{part}.downs.{i}") for i in range(len(rows) - 1))]
    return [[(first, False), *row] for first, row in zip(firsts, rows, strict=True)]
