"""The table of bench/parity.py: how far our tensor is from that of the reference, and where it is too far first."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

BAR = 1e-4  # of the relative difference; float32 in another order gives 1e-7 to 1e-5
HEADER = """\
| what | shape | max abs difference | relative | ok | ours, s | theirs, s |
|---|---|---|---|---|---|---|"""


class Row(NamedTuple):
    """One tensor, computed by both sides."""

    what: str
    shape: tuple[int, ...]  # of ours
    largest: float  # max |ours - theirs|
    relative: float  # ||ours - theirs|| / ||theirs||
    seconds: tuple[float, float] | None  # ours, theirs; None: not timed

    @property
    def ok(self) -> bool:
        """Whether the difference is at most the bar; nan, which compares as false, is not."""
        return self.relative <= BAR

    @property
    def size(self) -> str:
        """The shape, in words."""
        return " x ".join(map(str, self.shape))

    def __str__(self) -> str:
        """A row in Markdown, padded so that a terminal shows columns."""
        times = " | ".join(f"{each:8.3f}" for each in self.seconds) if self.seconds else f"{'':8} | {'':8}"
        ok = "yes" if self.ok else "NO"
        return f"| {self.what:<44} | {self.size:>18} | {self.largest:8.1e} | {self.relative:8.1e} | {ok:<3} | {times} |"


def compare(what: str, ours: Tensor, theirs: Tensor, seconds: tuple[float, float] | None = None) -> Row:
    """Compare in float64. Another shape, or anything that is not finite, is infinitely far."""
    shape = tuple(ours.shape)
    if shape != tuple(theirs.shape):
        return Row(f"{what}, theirs {tuple(theirs.shape)}", shape, float("inf"), float("inf"), seconds)
    ours, theirs = (each.detach().to("cpu", torch.float64) for each in (ours, theirs))
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        return Row(f"{what}, not finite", shape, float("inf"), float("inf"), seconds)
    distance, norm = float((ours - theirs).norm()), float(theirs.norm())
    relative = distance / norm if norm > 0 else 0.0 if distance == 0 else float("inf")
    return Row(what, shape, float((ours - theirs).abs().max()), relative, seconds)


def compare_calls(what: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> Row:
    """Call both sides once, one right after the other, and compare what they give."""
    (our_value, our_seconds), (their_value, their_seconds) = timed(ours), timed(theirs)
    return compare(what, our_value, their_value, (our_seconds, their_seconds))


def timed(function: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """A result and the seconds that it took."""
    started = now()
    value = function()
    return value, now() - started


def now() -> float:
    """Seconds, after everything that a GPU was told has been done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def first_above(rows: Iterable[Row]) -> Row | None:
    """The first row that is not ok."""
    return next((row for row in rows if not row.ok), None)


def verdict(rows: list[Row]) -> str:
    """What the rows say together."""
    assert rows, "nothing was compared"
    first, worst = first_above(rows), max(rows, key=lambda row: row.relative)
    where = "none" if first is None else f"{first.what}, {first.size} (relative {first.relative:.1e})"
    return (
        f"first difference above {BAR:g}: {where}\n"
        f"largest of {len(rows)} relative differences: {worst.relative:.1e}, {worst.what}, {worst.size}"
    )
