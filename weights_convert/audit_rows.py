"""The place of every tensor of a file in the known architecture: one row each, and the totals of each part.

Nothing is refused: what an import would refuse has a row of its own.
"""

from dataclasses import dataclass

import torch

from ldm_us.config import ModelConfig
from ldm_us.files.checkpoint import PARTS
from weights_convert.blocks import network_order
from weights_convert.convert import Plan, expected_shape, target_shapes
from weights_convert.sources import Entry
from weights_convert.tensor_numbers import Numbers

PROBLEMS = ("missing", "misshaped", "unexpected")  # what an import refuses


@dataclass(frozen=True)
class Row:
    """One tensor of the file, or one that it lacks."""

    key: str  # its name in the file
    targets: tuple[str, ...]  # our names: several where it is split, none where it is not used
    shape: tuple[int, ...]  # in the file; where it is missing, that of the architecture
    dtype: str  # "" where it is missing
    status: str  # used, ignored, or one of PROBLEMS
    note: str  # how it is used, why it is ignored, what is wrong
    numbers: Numbers | None = None  # None until it is read, and where it is missing

    @property
    def problem(self) -> str:
        """What makes an audit unclean: one of PROBLEMS, or "not finite" where it is used; else ""."""
        if self.status in PROBLEMS:
            return self.status
        broken = self.status == "used" and self.numbers is not None and not self.numbers.is_finite
        return "not finite" if broken else ""


@dataclass(frozen=True)
class Total:
    """The size of one part."""

    part: str
    tensors: int
    parameters: int
    expected_tensors: int
    expected_parameters: int
    dtypes: tuple[str, ...]  # none: the file does not have this part


def audit_rows(plan: Plan, config: ModelConfig) -> list[Row]:
    """Every tensor of the file, and every missing one: as the network meets them, then those without a place in it."""
    shapes, entries = target_shapes(config), plan.source.entries
    targets: dict[str, list[str]] = {}
    for piece in plan.pieces:
        targets.setdefault(piece.key, []).append(piece.target)
    ema = {layout.part for layout in plan.layouts if layout.ema}

    def row(key: str, own: tuple[str, ...], status: str, note: str) -> Row:
        return Row(key, own, entries[key].shape, _type(entries[key].dtype), status, note)

    rows = []
    for key, own in targets.items():
        note = transform(entries[key].shape, shapes[own[0]], len(own), own[0].partition(".")[0] in ema)
        rows.append(row(key, tuple(own), "used", note))
    for rule in plan.misshaped:
        rows.append(
            row(rule.source, rule.targets, "misshaped", wanted(entries[rule.source], expected_shape(rule, shapes)))
        )
    for rule in plan.missing:
        rows.append(Row(rule.source, rule.targets, expected_shape(rule, shapes), "", "missing", "not in the file"))
    rows.sort(key=lambda row: network_order(row.targets[0]))
    rows += [row(key, (), "unexpected", "no place for it in the model") for key in plan.unexpected]
    return rows + [row(key, (), "ignored", reason) for key, reason in plan.ignored.items()]


def wanted(entry: Entry, shape: tuple[int, ...]) -> str:
    """What a misshaped tensor should be."""
    return f"should be {list(shape)}" + ("" if entry.dtype.is_floating_point else " of floating point")


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def transform(shape: tuple[int, ...], target: tuple[int, ...], count: int, ema: bool) -> str:
    """What an import does to a tensor on its way to ours."""
    steps = ["ema name"] * ema
    if count > 1:
        steps.append(f"split into {count} equal parts")
    elif shape != target:
        steps.append(f"{list(shape)} -> {list(target)}")
    return ", ".join(steps) or "none"


def totals(rows: list[Row], config: ModelConfig) -> list[Total]:
    """Tensors and parameters of each part that are used, and those that the architecture has."""
    shapes = target_shapes(config)
    found = []
    for part in PARTS:
        own = [row for row in rows if row.status == "used" and row.targets[0].startswith(f"{part}.")]
        filled = [shapes[target] for row in own for target in row.targets]
        expected = [shape for target, shape in shapes.items() if target.startswith(f"{part}.")]
        dtypes = tuple(sorted({row.dtype for row in own}))
        found.append(Total(part, len(filled), _parameters(filled), len(expected), _parameters(expected), dtypes))
    return found


def _parameters(shapes: list[tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)
