"""From the tensors of a file to our tensors: a plan that uses every source tensor once, then one tensor at a time."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ldm_us.config import LIMITS, ModelConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import PARTS, LazyTensor, Shapes, check_numbers
from weights_convert.detect import detect
from weights_convert.expansion import rules_for
from weights_convert.rules import (
    IGNORED,
    IGNORED_ALONE,
    IGNORED_EMA,
    IGNORED_WITHOUT_EMA,
    POSITIONS,
    SCALE,
    SCALE_FACTOR,
    SPOILT_POSITIONS,
    SURPLUS_LAYERS,
    Layout,
    Rule,
)
from weights_convert.sources import Source

MOST_POSITIONS = 10_000  # of a text encoder; CLIP has 77
LARGEST = 65504.0  # of fp16: weights never come near it
MENTIONED = 3  # tensors of a kind that an error names
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # that numbers can be written in


@dataclass(frozen=True)
class Piece:
    """How one tensor of a result is filled: with part `index` of `count` equal parts of a source tensor."""

    target: str
    shape: tuple[int, ...]
    file: Path
    key: str
    entry: LazyTensor
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Plan:
    """What one source gives."""

    source: Source
    layouts: tuple[Layout, ...]
    pieces: tuple[Piece, ...]
    ignored: dict[str, str]  # name in the source -> reason
    missing: tuple[Rule, ...] = ()  # these three are what an import refuses and an audit lists
    misshaped: tuple[Rule, ...] = ()  # of another shape, or no weights
    unexpected: tuple[str, ...] = ()


@cache
def target_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of a model with a ControlNet; nothing is allocated."""
    with torch.device("meta"):
        model = LatentDiffusion(config)
        model.add_controlnet()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def plan_source(
    source: Source, config: ModelConfig, wanted: Iterable[str] = PARTS, ema: bool = False, reason: str = "not asked for"
) -> Plan:
    """Give every tensor of the source its place or the reason why it is left out; anything else is a ValueError.

    Of `wanted`, the parts that the source has are taken, each complete; `reason` says why its other parts are not.
    """
    plan = examine_source(source, config, wanted, ema, reason)
    misshaped = []
    for rule in plan.misshaped:
        expected = list(expected_shape(rule, target_shapes(config)))
        misshaped.append(f"{rule.source} is {type_and_shape(source.entries[rule.source])}, not {expected}")
    if SCALE_FACTOR in plan.unexpected:
        raise ValueError(
            f"{source.path}: its scale_factor is {scale_of(source):.5g}, not {config.vae.scale:g} as in {config.name}. "
            f"If it is right, write `scale_factor: {scale_of(source):.5g}` to {source.path.with_suffix('.yaml').name} "
            "beside it."
        )
    kinds = {"missing": [rule.source for rule in plan.missing], "unexpected": plan.unexpected, "misshaped": misshaped}
    problems = []
    for kind, names in kinds.items():
        if names:
            more = ", ..." if len(names) > MENTIONED else ""
            problems.append(f"{len(names)} {kind} ({', '.join(names[:MENTIONED])}{more})")
    if plan.unexpected and len(problems) == 1 and plan.pieces:
        raise ValueError(
            f"{source.path}: complete as {config.name}, but with tensors that it has no place for: {problems[0]}. "
            "Without them it may not give what was meant: use the program that wrote it."
        )
    if problems:
        raise ValueError(
            f"{source.path}: does not hold the tensors of {config.name}: {'; '.join(problems)}. "
            f"Check that the file is complete and of the sizes that --preset, or the config it carries, names."
        )
    return plan


def examine_source(
    source: Source, config: ModelConfig, wanted: Iterable[str] = PARTS, ema: bool = False, reason: str = "not asked for"
) -> Plan:
    """Like plan_source, but keep what does not fit in the plan instead of refusing it."""
    shapes = target_shapes(config)
    found = detect(source)
    layouts: list[Layout] = []
    left_out: dict[str, str] = {}
    for layout in found:
        rules = rules_for(config, layout, shapes)
        if layout.part not in wanted:
            left_out |= {rule.source: f"{layout.part}: {reason}" for rule in rules}
        elif layout.ema and not ema:
            raise ValueError(f"{source.path}: of the UNet it holds the moving average alone. Add --ema to take that.")
        elif ema and layout.part == "unet":
            layouts.append(ema_layout(source, layout))
            left_out |= {rule.source: "unet: --ema takes its moving average" for rule in rules}
        else:
            layouts.append(layout)
    rules = [rule for layout in layouts for rule in rules_for(config, layout, shapes)]
    used = {rule.source for rule in rules}
    ignored = ignored_names(source, used, left_out, found, ema, config)
    present = [rule for rule in rules if rule.source in source.entries]
    fitting = {
        rule
        for rule in present
        if fits(source.entries[rule.source].shape, expected_shape(rule, shapes))
        and source.entries[rule.source].dtype.is_floating_point  # weights, not whole numbers
    }
    pieces = [
        Piece(target, shapes[target], source.path, rule.source, source.entries[rule.source], i, len(rule.targets))
        for rule in rules
        if rule in fitting
        for i, target in enumerate(rule.targets)
    ]
    return Plan(
        source,
        tuple(layouts),
        tuple(pieces),
        ignored,
        missing=tuple(rule for rule in rules if rule.source not in source.entries),
        misshaped=tuple(rule for rule in present if rule not in fitting),
        unexpected=tuple(sorted(source.entries.keys() - used - ignored.keys())),
    )


def ema_layout(source: Source, layout: Layout) -> Layout:
    """The UNet's moving average in place of the UNet."""
    start = "model_ema.diffusion_model"
    if layout.naming != "compvis" or not any(name.startswith(start) for name in source.entries):
        raise ValueError(f"{source.path}: holds no moving average ({start}...). Leave --ema out.")
    return Layout("unet", "compvis", start, ema=True)


def ignored_names(
    source: Source,
    used: set[str],
    left_out: Mapping[str, str],
    layouts: Iterable[Layout],
    ema: bool,
    config: ModelConfig,
) -> dict[str, str]:
    """The unused names that may be left out -> why."""
    patterns = (IGNORED_EMA if ema else IGNORED_WITHOUT_EMA) | IGNORED
    if source.path.is_dir():  # the number of layers was read from its config
        beyond = range(config.text.layers, LIMITS["layers"])
        patterns |= {f"*text_model.encoder.layers.{layer}.*": SURPLUS_LAYERS for layer in beyond}
    for layout in layouts:
        folder = layout.prefix[: layout.prefix.find("/") + 1]
        if folder == layout.prefix.removesuffix("text_model."):  # not within a whole model of CompVis
            alone = IGNORED_ALONE.get((layout.part, layout.naming), {})
            patterns = patterns | {folder + pattern: reason for pattern, reason in alone.items()}
    ignored = {}
    for name in source.entries:
        if name in used:
            continue
        by_pattern = (reason for pattern, reason in patterns.items() if fnmatchcase(name, pattern))
        reason = left_out.get(name) or next(by_pattern, None)
        if reason == SCALE and not math.isclose(scale_of(source), config.vae.scale, rel_tol=1e-3):
            continue
        if reason is not None:
            ignored[name] = SPOILT_POSITIONS if reason == POSITIONS and is_spoilt(source.entries[name]) else reason
    return ignored


def scale_of(source: Source) -> float:
    """The scale of the latents in LDM's own buffer; nan for what is not one number."""
    value = source.entries[SCALE_FACTOR].load() if math.prod(source.entries[SCALE_FACTOR].shape) == 1 else torch.nan
    return float(value)


def is_spoilt(position_ids: LazyTensor) -> bool:
    """Whether they are not the numbers from 0 on: a merge that averages them in half precision does so."""
    count = torch.Size(position_ids.shape).numel()
    return count > MOST_POSITIONS or not bool((position_ids.load().flatten() == torch.arange(count)).all())


def expected_shape(rule: Rule, shapes: Shapes) -> tuple[int, ...]:
    """The shape of the source tensor that holds all targets of the rule."""
    first, *rest = shapes[rule.targets[0]]
    return (len(rule.targets) * first, *rest)


def type_and_shape(entry: LazyTensor) -> str:
    """Type and shape, as in "float32 [4, 320]"."""
    return f"{str(entry.dtype).removeprefix('torch.')} {list(entry.shape)}"


def fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the shapes are equal, or [c, c] and [c, c, 1, 1]: the same map as a linear layer and as a convolution."""
    return _as_matrix(shape) == _as_matrix(expected)


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) and shape[0] == shape[1] else shape


def cut_piece(tensor: Tensor, piece: Piece) -> Tensor:
    """One of our tensors from the source tensor that holds it."""
    return tensor.chunk(piece.count)[piece.index].reshape(piece.shape)


def load_piece(piece: Piece, dtype: torch.dtype | None = None) -> Tensor:
    """Read one of our tensors, in its own type or in `dtype`. Raise ValueError for what is no number or too large."""
    tensor = cut_piece(piece.entry.load(), piece)
    check_numbers(piece.file, piece.key, tensor)
    if dtype is None or dtype == tensor.dtype:
        return tensor.contiguous()
    converted = tensor.to(dtype)
    if not converted.isfinite().all():
        raise ValueError(f"{piece.file}: {piece.key} has numbers too large for {dtype}. Choose another --dtype.")
    return converted.contiguous()


def lazy(piece: Piece, dtype: torch.dtype | None) -> LazyTensor:
    """One of our tensors, read while it is written."""
    return LazyTensor(piece.target, piece.shape, dtype or piece.entry.dtype, lambda: load_piece(piece, dtype))
