"""The bytes and the values of one tensor, in one pass: hash, range, and what is no number."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from weights_convert.convert import LARGEST

CHUNK = 1 << 20  # numbers that are looked at together: 8 MiB as float64


@dataclass(frozen=True)
class Numbers:
    """One tensor's bytes and values."""

    sha256: str  # of the bytes, row by row, little-endian
    count: int
    lowest: float  # of the finite values; nan if there are none
    highest: float
    rms: float  # root of the mean square
    nans: int
    infinities: int

    @property
    def is_finite(self) -> bool:
        """Whether there is no NaN and no infinity."""
        return self.nans + self.infinities == 0

    @property
    def is_too_large(self) -> bool:
        """Whether a finite number is beyond LARGEST: what a network computes with it overflows, or is noise."""
        return max(-self.lowest, self.highest) > LARGEST

    @property
    def flag(self) -> str:
        """What a reader should look at; "" for numbers of every day."""
        if not self.is_finite:
            kinds = ((self.nans, "NaN"), (self.infinities, "infinite"))
            return ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)
        if self.is_too_large:
            return f"beyond {LARGEST:g}"
        if self.lowest == self.highest == 0:
            return "all zero"
        return f"constant {self.lowest:g}" if self.lowest == self.highest and self.count > 1 else ""


def numbers_of(tensor: Tensor) -> Numbers:
    """Bytes and values in one pass; statistics in float64."""
    flat = tensor.detach().contiguous().reshape(-1)
    digest = hashlib.sha256()
    lowest, highest, squares, nans, infinities = float("inf"), float("-inf"), 0.0, 0, 0
    for chunk in flat.split(CHUNK):
        digest.update(chunk.view(torch.uint8).numpy().data)
        values = chunk.double()
        if not values.isfinite().all():
            nans += int(values.isnan().sum())
            infinities += int(values.isinf().sum())
            values = values[values.isfinite()]
        if len(values):
            low, high = values.aminmax()
            lowest, highest = min(lowest, float(low)), max(highest, float(high))
            squares += float(values.dot(values))
    finite = flat.numel() - nans - infinities
    if finite == 0:
        lowest = highest = float("nan")
    rms = (squares / finite) ** 0.5 if finite else float("nan")
    return Numbers(digest.hexdigest(), flat.numel(), lowest, highest, rms, nans, infinities)
