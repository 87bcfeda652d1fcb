"""The table of the benchmark: ours, diffusers, their ratio and its spread, the floor, each bar, passed or missed."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

HALF = ("bfloat16", "float16")
FLOAT = ("float32",)
EVERY = (*FLOAT, *HALF)
HEADER = """\
| what | dtype | ours | diffusers | ratio | spread | bar | | floor | floor / ours |
|---|---|---|---|---|---|---|---|---|---|"""
PAPER_EPOCHS, PAPER_IMAGES, PAPER_MINUTES = (
    200,
    617,
    20.0,
)  # 100 of the UNet, then as many of the ControlNet


@dataclass(frozen=True)
class Row:
    """One thing that both sides did, several times."""

    what: str  # "family, of which": a bar is for a family
    dtype: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    unit: str = "s"
    floor: float | None = None  # what the machine needs at least, in the unit
    difference: float | None = None  # ||ours - theirs|| / ||theirs|| of what they computed
    compiled: bool = False
    note: str = ""  # why there is no figure

    @property
    def family(self) -> str:
        """What bars are for."""
        return self.what.split(",")[0]

    @property
    def ratios(self) -> list[float]:
        """Ours / theirs of each round."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios: both sides of a round had the same machine."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def share(self) -> float | None:
        """Floor / ours: how much of the machine ours gets."""
        return None if self.floor is None or not self.ours else self.floor / statistics.median(self.ours)

    def cells(self, bar: "Bar | None") -> list[str]:
        """The cells of the row in Markdown."""
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}" if len(self.ratios) > 1 else ""
        sides = [f"{statistics.median(side):.3g} {self.unit}" if side else "-" for side in (self.ours, self.theirs)]
        floor = "" if self.floor is None else f"{self.floor:.3g} {self.unit}"
        return [
            self.what + (", compiled" if self.compiled else ""),
            self.dtype,
            *sides,
            "" if self.ratio is None else f"{self.ratio:.2f}",
            spread,
            "" if bar is None else bar.wanted,
            self.note if bar is None else bar.verdict(self),
            floor,
            "" if self.share is None else f"{self.share:.0%}",
        ]


@dataclass(frozen=True)
class Bar:
    """The most that ours / theirs of a family may be, and the least share of the matrix rate."""

    family: str
    high: float
    dtypes: Sequence[str] = EVERY
    compiled: bool | None = None  # None: either
    share: float | None = None  # floor / ours

    @property
    def wanted(self) -> str:
        """The bar, in words."""
        return f"<= {self.high:.2f}" + (f", {self.share:.0%} of the rate" if self.share is not None else "")

    def holds_for(self, row: Row) -> bool:
        """Whether the row is one that this bar is for."""
        compiled = self.compiled is None or row.compiled == self.compiled
        return row.family == self.family and row.dtype in self.dtypes and compiled

    def verdict(self, row: Row) -> str:
        """pass, MISS, or that it was not measured and why."""
        if row.ratio is None:
            return f"not measured: {row.note}" if row.note else "not measured"
        enough = self.share is None or (row.share is not None and row.share >= self.share)
        return "pass" if row.ratio <= self.high and enough else "MISS"


ON_CPU = (
    Bar("UNet", 1.00, FLOAT),
    Bar("UNet", 0.95, HALF),
    Bar("ControlNet and UNet", 0.85),
    Bar("sample with mask", 0.80),
    Bar("epoch", 0.60),
    Bar("peak memory", 1.00),
)
ON_GPU = (
    *(bar for bar in ON_CPU if bar.family != "sample with mask"),
    Bar("training step", 1 / 1.3, compiled=False, share=0.45),
    Bar("training step", 1 / 1.1, compiled=True, share=0.45),
    *(Bar(f"sample {kind} mask", 1 / 1.3, compiled=False) for kind in ("with", "without")),
    *(Bar(f"sample {kind} mask", 1 / 1.1, compiled=True) for kind in ("with", "without")),
)


def bars_for(device: str) -> tuple[Bar, ...]:
    """Those of a GPU, or of a CPU."""
    return ON_GPU if device.startswith("cuda") else ON_CPU


def table(rows: Iterable[Row], bars: Sequence[Bar]) -> str:
    """All rows in Markdown, and one for every bar that no row is for."""
    rows = list(rows)
    lines = []
    for row in rows:
        bar = next((bar for bar in bars if bar.holds_for(row)), None)
        lines.append(line(row.cells(bar)))
    for bar in bars:
        if not any(bar.holds_for(row) for row in rows):
            compiled = {True: ", compiled", False: ", eager", None: ""}[bar.compiled]
            dtypes = "" if bar.dtypes == EVERY else " or ".join(bar.dtypes)
            lines.append(line([bar.family + compiled, dtypes, "-", "-", "", "", bar.wanted, "not measured", "", ""]))
    return "\n".join([HEADER, *lines])


def line(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def differences(rows: Iterable[Row]) -> str:
    """How far apart the two sides were where both computed the same, by dtype: the largest."""
    found: dict[str, float] = {}
    for row in rows:
        if row.difference is not None:
            found[row.dtype] = max(found.get(row.dtype, 0.0), row.difference)
    told = [f"{dtype} {value:.1e}" for dtype, value in found.items()]
    return f"Largest relative difference of what both sides computed: {', '.join(told)}." if told else ""


def paper_minutes(rows: Iterable[Row]) -> float | None:
    """Minutes of the paper's training by the measured steps, UNet and ControlNet; None without both."""
    fastest: dict[str, float] = {}  # seconds an image, by stage
    for row in rows:
        family, *of = row.what.split(", ")
        if family == "training step" and row.ours and len(of) > 1 and of[0] in ("UNet", "ControlNet"):
            seconds = statistics.median(row.ours) / int(of[1].removeprefix("batch "))
            fastest[of[0]] = min(seconds, fastest.get(of[0], seconds))
    if len(fastest) < 2:
        return None
    return PAPER_EPOCHS / 2 * PAPER_IMAGES * sum(fastest.values()) / 60
