"""The charts that a log has values for, as series of points: what curves.png and the report draw."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ldm_us.display.axes import Point, Series

Lines = Sequence[Mapping[str, float]]  # of log.jsonl: a step and values by name

BAND = re.compile(r"val_loss_(\d+)_(\d+)")
ZERO_CONV = re.compile(r"zero_conv_norm_(\d+)")
DASHES = ("", "7 3", "3 3", "9 3 2 3")
MOST_POINTS = 400  # of a line; more would be less than a pixel apart

LOSS, BANDS, MASKS, ZERO_CONVS = (
    "Training loss",
    "Validation loss by timestep",
    "Does the mask help?",
    "Zero convolutions",
)
SINGLE = (  # charts of one value: its name in the log, title, unit
    ("control_gap", "Control gap", "loss, shuffled minus true mask"),
    ("val_psnr_db", "PSNR of held-out images", "dB"),
    ("val_l1", "L1 of held-out images", "mean |x - x_hat| in [-1, 1]"),
    ("grad_norm", "Gradient norm", "norm before clipping"),
    ("lr", "Learning rate", "step size of AdamW"),
    ("images_per_s", "Speed", "images / s"),
)


@dataclass(frozen=True)
class Panel:
    """One chart over the steps."""

    title: str
    unit: str  # of the y axis
    series: Sequence[Series]
    log_scale: bool = False


def panels(lines: Lines) -> list[Panel]:
    """Every chart whose values are in the log."""
    gap, *others = (single(lines, *value) for value in SINGLE)
    drawn = [training_loss(lines), bands(lines), masks(lines), gap, zero_convs(lines), *others]
    return [panel for panel in drawn if panel.series]


def values_of(lines: Lines, key: str) -> list[Point]:
    """(step, value) of every line that has the value."""
    return [(line["step"], line[key]) for line in lines if key in line]


def single(lines: Lines, key: str, title: str, unit: str) -> Panel:
    """One value over the steps."""
    points = thinned(values_of(lines, key))
    return Panel(title, unit, [Series(title, points)] if points else [])


def training_loss(lines: Lines) -> Panel:
    """The loss as logged, and a running mean of it."""
    points = values_of(lines, "loss")
    window = len(points) // 20 * 2 + 1  # a tenth of the run
    if window > 1:
        series = [
            Series("every line of the log", thinned(points), opacity=0.35, width=1.2, dots=False),
            Series(f"mean of {window} lines", thinned(smoothed(points, window)), width=2.4, dots=False),
        ]
    else:
        series = [Series("every line of the log", points)] if points else []
    return Panel(LOSS, "loss", series)


def bands(lines: Lines) -> Panel:
    """Validation loss in each part of the noise schedule, and their mean."""
    found = {key: match for line in lines for key in line if (match := BAND.fullmatch(key))}
    series = [
        Series(f"t {found[key][1]}-{found[key][2]}", values_of(lines, key), i % 4, dashes=DASHES[i % 4])
        for i, key in enumerate(sorted(found, key=lambda key: int(found[key][1])))
    ]
    if series:
        series.append(Series("mean", values_of(lines, "val_loss"), 5, width=1.5, dashes="2 3"))
    return Panel(BANDS, "loss, log scale", series, log_scale=True)


def masks(lines: Lines) -> Panel:
    """Validation loss on lesion images with three kinds of mask."""
    kinds = ("true", "shuffled", "empty")
    found = [(i, kind, values_of(lines, f"val_loss_{kind}_mask")) for i, kind in enumerate(kinds)]
    series = [Series(f"{kind} mask", points, i, dashes=DASHES[i]) for i, kind, points in found if points]
    return Panel(MASKS, "validation loss", series)


def zero_convs(lines: Lines) -> Panel:
    """The norm of every zero convolution: fine ones pale, deep ones dark."""
    keys = sorted({key for line in lines for key in line if ZERO_CONV.fullmatch(key)})
    last = len(keys) - 1
    names = {0: "first skip", last // 2: "halfway", last: "middle block"}
    series = [
        Series(
            names.get(i, f"skip {i}"),
            values_of(lines, key),
            1 if i == last else 0,
            opacity=0.3 + 0.7 * i / max(1, last),
            width=1.6,
            in_legend=i in names,
        )
        for i, key in enumerate(keys)
    ]
    return Panel(ZERO_CONVS, "norm of the weight", series)


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """The mean over a window of lines around each, narrower at the ends; values that are not finite are left out."""
    finite = [math.isfinite(value) for _, value in points]
    sums = [0.0, *accumulate(value if kept else 0.0 for (_, value), kept in zip(points, finite, strict=True))]
    counts = [0, *accumulate(map(int, finite))]
    means = []
    for i, (step, _) in enumerate(points):
        first, end = max(0, i - window // 2), min(len(points), i + window // 2 + 1)
        near = counts[end] - counts[first]
        means.append((step, (sums[end] - sums[first]) / near if near else math.nan))
    return means


def thinned(points: list[Point]) -> list[Point]:
    """Every n-th point, and the last, so that no more than MOST_POINTS are drawn."""
    every = math.ceil(len(points) / MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
