"""What changed between two files of one architecture, and where: tensor by tensor, then block by block."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm_us.files.checkpoint import PARTS
from weights_convert.audit.blocks import KIND_NAMES, block_of, kind_of
from weights_convert.audit.numbers import CHUNK

STATES = {
    "identical": "identical to the bit",
    "rounded": "equal but for the rounding of their type",
    "changed": "changed",
}


@dataclass(frozen=True)
class Drift:
    """One tensor of ours in a file, a, against the same in a reference, b; sums in float64."""

    target: str
    axes: int  # 1 for biases and norms
    state: str  # identical: type and every bit; rounded: so after rounding to the smaller of both types; changed
    squared_difference: float  # ||a - b||^2
    squared_norm: float  # ||b||^2
    largest: float  # max |a - b|
    cosine: float  # of the angle between a and b; nan where one of them is 0

    @property
    def part(self) -> str:
        """The part of the model that the tensor belongs to."""
        return self.target.partition(".")[0]

    @property
    def relative(self) -> float:
        """||a - b|| / ||b||; infinite where b is all zero and a is not."""
        return relative(self.squared_difference, self.squared_norm)


@dataclass(frozen=True)
class GroupDrift:
    """Some tensors of one part; their matrices and kernels taken together as one vector.

    Biases and norms are not in that vector, unless the group has nothing else: a few norms near 1 outweigh all the
    small numbers of the matrices that they scale.
    """

    part: str
    name: str  # of a block or of a kind of layer
    tensors: int
    differing: int  # not identical
    relative: float
    largest: float


def relative(squared_difference: float, squared_norm: float) -> float:
    """||a - b|| / ||b|| of their squares."""
    if squared_difference == 0:
        return 0.0
    return math.inf if squared_norm == 0 else math.sqrt(squared_difference / squared_norm)


def measure_drift(target: str, a: Tensor, b: Tensor) -> Drift:
    """Compare a tensor with its reference of the same shape; their types may differ."""
    difference = squares_a = squares_b = product = 0.0
    largest, same = torch.zeros((), dtype=torch.float64), True
    flat_a, flat_b = a.contiguous().reshape(-1), b.contiguous().reshape(-1)
    for chunk_a, chunk_b in zip(flat_a.split(CHUNK), flat_b.split(CHUNK), strict=True):
        wide_a, wide_b = chunk_a.double(), chunk_b.double()
        squares_a += float(wide_a.dot(wide_a))
        squares_b += float(wide_b.dot(wide_b))
        product += float(wide_a.dot(wide_b))
        if same_bits(chunk_a, chunk_b):
            continue  # not a number minus itself would be no number
        same = False
        change = wide_a - wide_b
        difference += float(change.dot(change))
        largest = torch.maximum(largest, change.abs().max())  # not a number as soon as one change is none
    state = "identical" if a.dtype == b.dtype and same else "changed"
    if a.dtype != b.dtype and rounds_to_the_same(flat_a, flat_b):
        state = "rounded"
    norms = math.sqrt(squares_a) * math.sqrt(squares_b)
    cosine = product / norms if norms > 0 else math.nan
    return Drift(target, a.dim(), state, difference, squares_b, float(largest), cosine)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one type and the same bytes: 0 is not -0, and a NaN equals itself."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def rounds_to_the_same(a: Tensor, b: Tensor) -> bool:
    """Whether the wider type holds numbers that round to those of the narrower one, such as fp32 to fp16."""
    if a.dtype.itemsize == b.dtype.itemsize:
        return False
    wide, narrow = (a, b) if a.dtype.itemsize > b.dtype.itemsize else (b, a)
    return all(same_bits(x.to(y.dtype), y) for x, y in zip(wide.split(CHUNK), narrow.split(CHUNK), strict=True))


def by_block(drifts: Sequence[Drift]) -> list[GroupDrift]:
    """One line per block, in the order of the drifts: that of the network."""
    return _groups(drifts, block_of)


def by_kind(drifts: Sequence[Drift]) -> list[GroupDrift]:
    """One line per part and kind of layer."""
    groups = _groups(drifts, lambda target: (target.partition(".")[0], kind_of(target)))
    return sorted(groups, key=lambda group: (PARTS.index(group.part), KIND_NAMES.index(group.name)))


def _groups(drifts: Sequence[Drift], place_of: Callable[[str], tuple[str, str]]) -> list[GroupDrift]:
    """Sums and counts of the tensors of each place, a part and a name."""
    places = defaultdict(list)
    for drift in drifts:
        places[place_of(drift.target)].append(drift)
    groups = []
    for (part, name), own in places.items():
        matrices = [drift for drift in own if drift.axes > 1] or own
        change = relative(sum(d.squared_difference for d in matrices), sum(d.squared_norm for d in matrices))
        differing = sum(drift.state != "identical" for drift in own)
        largest = float(np.max([drift.largest for drift in own]))  # not a number if one of them is none
        groups.append(GroupDrift(part, name, len(own), differing, change, largest))
    return groups


def shares(groups: Sequence[GroupDrift]) -> list[float]:
    """How long the bar of each group is, the longest 1; none for a change that is infinite or no number."""
    longest = max((group.relative for group in groups if math.isfinite(group.relative)), default=0.0) or 1.0
    return [group.relative / longest if math.isfinite(group.relative) else 0.0 for group in groups]


def unchanged_parts(drifts: Sequence[Drift]) -> dict[str, str]:
    """The parts in which nothing changed, but for rounding -> how they are the same."""
    found = {}
    for part in PARTS:
        states = [drift.state for drift in drifts if drift.part == part]
        if states and "changed" not in states:
            state = "rounded" if "rounded" in states else "identical"
            found[part] = f"all {len(states):,} tensors are {STATES[state]}"
    return found


def most_drifted(drifts: Sequence[Drift], count: int) -> list[Drift]:
    """The matrices and kernels that moved furthest: no number first, then infinite, then by relative change.

    Biases and norms are left out: many start at or near 0, where a relative change says little.
    """
    moved = [drift for drift in drifts if drift.state == "changed" and drift.axes > 1]
    return sorted(moved, key=lambda d: (not math.isnan(d.relative), -d.relative))[:count]
