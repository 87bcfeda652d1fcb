"""From our tensors to those of original files, and which file holds what: the rules of an import, the other way."""

from collections.abc import Iterable

import torch

from ldm_us.config import ModelConfig
from ldm_us.files.checkpoint import PARTS, LazyTensor
from weights_convert.convert import Piece, Plan, lazy, target_shapes
from weights_convert.expansion import rules_for
from weights_convert.rules import CONVOLUTIONAL, Layout
from weights_convert.sources import COMPONENTS, Source

POSITION_IDS = "embeddings.position_ids"  # behind the prefix of the text encoder, in transformers' names

# A CompVis file of a whole model. A ControlNet is a file of its own.
COMPVIS = (
    Layout("unet", "compvis", "model.diffusion_model."),
    Layout("vae", "compvis", "first_stage_model."),
    Layout("text", "transformers", "cond_stage_model.transformer.text_model."),
)
COMPVIS_CONTROLNET = Layout("controlnet", "compvis", "control_model.")
DIFFUSERS = {  # component, a folder -> its tensors
    "unet": Layout("unet", "diffusers", ""),
    "vae": Layout("vae", "diffusers", ""),
    "text_encoder": Layout("text", "transformers", "text_model."),
    "controlnet": Layout("controlnet", "diffusers", ""),
}


def layouts_by_file(format: str, plan: Plan) -> dict[str, tuple[Layout, ...]]:
    """The files of weights in --out, and the parts in each; "" is --out itself."""
    parts = {layout.part for layout in plan.layouts}
    missing = [part for part in PARTS if part not in parts and (format == "controlnet") == (part == "controlnet")]
    if missing:
        raise ValueError(
            f"{plan.source.path}: holds {', '.join(sorted(parts))}, but no {missing[0]}, which --format {format} "
            "writes. Give a model that has one."
        )
    if format == "compvis":
        return {"": COMPVIS}
    if format == "controlnet":
        return {"": (COMPVIS_CONTROLNET,)}
    own = {component: layout for component, layout in DIFFUSERS.items() if layout.part in parts}
    return {f"{component}/{COMPONENTS[component][0]}": (layout,) for component, layout in own.items()}


def tensors_of(
    source: Source, config: ModelConfig, layouts: Iterable[Layout], dtype: torch.dtype | None
) -> list[LazyTensor]:
    """The tensors of one file of weights, each read while it is written."""
    tensors = []
    for layout in layouts:
        tensors += [lazy(piece, dtype) for piece in plan_export(source, config, layout)]
        tensors += position_ids(config, layout)
    return tensors


def plan_export(source: Source, config: ModelConfig, layout: Layout) -> list[Piece]:
    """One piece for every weight that `layout` has of its part; the source holds all tensors of the part in our names.

    Raise ValueError for a learned prompt, which no other program has a place for.
    """
    if config.text.prompt_tokens and layout.part == "text":
        raise ValueError(
            f"{source.path}: has a learned prompt of {config.text.prompt_tokens} tokens, and no other program's format "
            "has a place for it. Sample with sample.py, or export a model that was trained without one."
        )
    shapes = target_shapes(config)
    pieces = []
    for rule in rules_for(config, layout, shapes):
        (ours,) = rule.targets  # only open_clip, which is never written, joins tensors
        shape = original_shape(layout, shapes[ours])
        pieces.append(Piece(rule.source, shape, source.path, ours, source.entries[ours]))
    return pieces


def original_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape there of a tensor of ours: a matrix stays one or is a convolution of 1x1."""
    return (*shape, 1, 1) if len(shape) == 2 and (layout.part, layout.naming) in CONVOLUTIONAL else shape


def position_ids(config: ModelConfig, layout: Layout) -> list[LazyTensor]:
    """What a text encoder has beside its weights: the numbers 0 to n - 1, (1, n) int64 whatever the weights' type."""
    if layout.part != "text":
        return []
    n = config.text.length
    return [LazyTensor(layout.prefix + POSITION_IDS, (1, n), torch.int64, lambda: torch.arange(n).view(1, n))]
