"""An audit of a file of weights: every tensor read once, its place, bytes and numbers, its drift from another file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ldm_us.config import ModelConfig
from ldm_us.files.atomic import sha256_file
from weights_convert.audit_rows import Row, Total, audit_rows, totals
from weights_convert.blocks import network_order
from weights_convert.convert import Piece, Plan, cut_piece, examine_source
from weights_convert.drift import Drift, measure_drift
from weights_convert.rules import Layout
from weights_convert.sources import Source
from weights_convert.tensor_numbers import numbers_of


@dataclass(frozen=True)
class AuditedFile:
    """One SRC as it lies on the disk."""

    path: Path
    files: tuple[tuple[Path, int, str], ...]  # path, bytes, sha256
    tensors: int
    layouts: tuple[Layout, ...]


@dataclass(frozen=True)
class Comparison:
    """How the tensors of a file differ from those of another."""

    other: AuditedFile
    drifts: tuple[Drift, ...]
    only_in_source: tuple[str, ...]  # our names
    only_in_other: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """All that was found."""

    source: AuditedFile
    config: ModelConfig
    rows: tuple[Row, ...]
    totals: tuple[Total, ...]
    comparison: Comparison | None

    @property
    def problems(self) -> list[Row]:
        """The rows that make it unclean."""
        return [row for row in self.rows if row.problem]

    @property
    def is_clean(self) -> bool:
        """Whether everything fits, and all that is used is finite."""
        return not self.problems


def audit(source: Source, config: ModelConfig, ema: bool = False, other: Source | None = None) -> Audit:
    """Read a source, and the one to compare it with, once. Raise ValueError for another kind of model."""
    plan = examine_source(source, config, ema=ema)
    if ema and not any(layout.ema for layout in plan.layouts):
        raise ValueError(f"{source.path}: has no UNet to take the moving average of. Leave --ema out.")
    theirs = None if other is None else examine_source(other, config)
    differences = None if theirs is None else drift_meter(plan, theirs)
    rows, drifts = [], []
    for row in audit_rows(plan, config):
        if row.status == "missing":
            rows.append(row)
            continue
        tensor = source.entries[row.key].load()
        rows.append(replace(row, numbers=numbers_of(tensor)))
        if differences is not None:
            drifts += differences(row.key, tensor)
    comparison = None if theirs is None else compared(plan, theirs, drifts)
    return Audit(audited_file(plan), config, tuple(rows), tuple(totals(rows, config)), comparison)


def audited_file(plan: Plan) -> AuditedFile:
    """Size and hash of every file, and the layouts found in them."""
    files = tuple((file, file.stat().st_size, sha256_file(file)) for file in plan.source.files)
    return AuditedFile(plan.source.path, files, len(plan.source.entries), plan.layouts)


def compared(plan: Plan, theirs: Plan, drifts: list[Drift]) -> Comparison:
    """The drifts in the order of the network, and what could not be compared."""
    mine, other = ({piece.target for piece in one.pieces} for one in (plan, theirs))
    drifts.sort(key=lambda drift: network_order(drift.target))
    only = (tuple(sorted(names, key=network_order)) for names in (mine - other, other - mine))
    return Comparison(audited_file(theirs), tuple(drifts), *only)


def drift_meter(plan: Plan, theirs: Plan) -> Callable[[str, Tensor], list[Drift]]:
    """A function of a source tensor's name and the tensor: the drift of all that is ours in it from `theirs`."""
    mine: dict[str, list[Piece]] = {}
    for piece in plan.pieces:
        mine.setdefault(piece.key, []).append(piece)
    references = {piece.target: piece for piece in theirs.pieces}
    if not any(piece.target in references for piece in plan.pieces):
        raise ValueError(
            f"{theirs.source.path}: has no tensor to compare with those of {plan.source.path}. Give two files of one "
            "architecture that share a part."
        )

    def differences(key: str, tensor: Tensor) -> list[Drift]:
        found = []
        for piece in mine.get(key, ()):
            if piece.target in references:
                reference = references[piece.target]
                b = cut_piece(reference.entry.load(), reference)
                found.append(measure_drift(piece.target, cut_piece(tensor, piece), b))
        return found

    return differences
