"""All that an audit finds: a row for every tensor with its place, bytes and numbers; its drift from another file.

Nothing is refused: what an import would refuse has a row of its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from ldm_us.config import ModelConfig
from ldm_us.files.checkpoint import PARTS
from weights_convert.audit.blocks import network_order
from weights_convert.audit.drift import Drift, measure_drift
from weights_convert.audit.numbers import Numbers, numbers_of
from weights_convert.convert import Plan, cut_piece, examine_source, expected_shape, target_shapes
from weights_convert.sources import Source

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
        """What makes an audit unclean: one of PROBLEMS, or its numbers where it is used; else ""."""
        if self.status in PROBLEMS:
            return self.status
        if self.status != "used" or self.numbers is None:
            return ""
        return "too large" if self.numbers.is_too_large else "" if self.numbers.is_finite else "not finite"

    @property
    def flag(self) -> str:
        """What stands out in its numbers; "" where nothing does."""
        return "" if self.numbers is None else self.numbers.flag


@dataclass(frozen=True)
class Total:
    """The size of one part."""

    part: str
    tensors: int
    parameters: int
    expected_tensors: int
    expected_parameters: int
    dtypes: tuple[str, ...]  # none: the file does not have this part


@dataclass(frozen=True)
class Audit:
    """All that was found."""

    plan: Plan
    config: ModelConfig
    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    other: Plan | None  # of the file that it is compared with
    drifts: tuple[Drift, ...]  # of the tensors in both files, in the order of the network

    @property
    def problems(self) -> list[Row]:
        """The rows that make it unclean."""
        return [row for row in self.rows if row.problem]

    @property
    def is_clean(self) -> bool:
        """Whether everything fits, no component is left out of a folder, and all numbers that are used are sound."""
        return not self.problems and not self.plan.source.lacking


def audit(source: Source, config: ModelConfig, ema: bool = False, other: Source | None = None) -> Audit:
    """Read a source, and the one to compare it with, once. Raise ValueError for another kind of model."""
    plan = examine_source(source, config, ema=ema)
    if ema and not any(layout.ema for layout in plan.layouts):
        raise ValueError(f"{source.path}: has no UNet to take the moving average of. Leave --ema out.")
    theirs = None if other is None else examine_source(other, config)
    mine = {piece.target: piece for piece in plan.pieces}
    references = {} if theirs is None else {piece.target: piece for piece in theirs.pieces if piece.target in mine}
    if theirs is not None and not references:
        raise ValueError(
            f"{theirs.source.path}: has no tensor to compare with those of {source.path}. Give two files of one "
            "architecture that share a part."
        )
    rows, drifts = [], []
    for row in audit_rows(plan, config):
        if row.status == "missing":
            rows.append(row)
            continue
        tensor = source.entries[row.key].load()
        rows.append(replace(row, numbers=numbers_of(tensor)))
        for target in (target for target in row.targets if target in references):
            reference = references[target]
            b = cut_piece(reference.entry.load(), reference)
            drifts.append(measure_drift(target, cut_piece(tensor, mine[target]), b))
    return Audit(plan, config, tuple(rows), tuple(totals(rows, config)), theirs, tuple(drifts))


def audit_rows(plan: Plan, config: ModelConfig) -> list[Row]:
    """Every tensor of the file, and every missing one: as the network meets them, then those without a place in it."""
    shapes, entries = target_shapes(config), plan.source.entries
    ema = {layout.part for layout in plan.layouts if layout.ema}

    def row(key: str, own: tuple[str, ...], status: str, note: str) -> Row:
        return Row(key, own, entries[key].shape, str(entries[key].dtype).removeprefix("torch."), status, note)

    rows = []
    for key, pieces in groupby(plan.pieces, key=lambda piece: piece.key):
        own = tuple(piece.target for piece in pieces)
        steps = ["ema name"] * (own[0].partition(".")[0] in ema)
        if len(own) > 1:
            steps.append(f"split into {len(own)} equal parts")
        elif entries[key].shape != shapes[own[0]]:
            steps.append(f"{list(entries[key].shape)} -> {list(shapes[own[0]])}")
        rows.append(row(key, own, "used", ", ".join(steps) or "none"))
    for rule in plan.misshaped:
        note = f"should be {list(expected_shape(rule, shapes))}"
        note += "" if entries[rule.source].dtype.is_floating_point else " of floating point"
        rows.append(row(rule.source, rule.targets, "misshaped", note))
    for rule in plan.missing:
        rows.append(Row(rule.source, rule.targets, expected_shape(rule, shapes), "", "missing", "not in the file"))
    rows.sort(key=lambda row: network_order(row.targets[0]))
    rows += [row(key, (), "unexpected", "no place for it in the model") for key in plan.unexpected]
    return rows + [row(key, (), "ignored", reason) for key, reason in plan.ignored.items()]


def totals(rows: list[Row], config: ModelConfig) -> list[Total]:
    """Tensors and parameters of each part that are used, and those that the architecture has."""
    shapes = target_shapes(config)
    found = []
    for part in PARTS:
        own = [row for row in rows if row.status == "used" and row.targets[0].startswith(f"{part}.")]
        filled = [shapes[target] for row in own for target in row.targets]
        expected = [shape for target, shape in shapes.items() if target.startswith(f"{part}.")]
        if not expected:
            continue  # a model without start prior or grain
        dtypes = tuple(sorted({row.dtype for row in own}))
        found.append(Total(part, len(filled), _parameters(filled), len(expected), _parameters(expected), dtypes))
    return found


def _parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes))
