"""The charts that the log of a run has values for; RUN/curves.png, which shows them while it trains, and the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_us.display import charts
from ldm_us.display.charts import COLOURS, MUTED, TITLE_SIZE
from ldm_us.files.pictures import save_png
from ldm_us.training.log import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, float]]  # of log.jsonl: a step and values by name
Point = tuple[float, float]

BAND = re.compile(r"val_loss_(\d+)_(\d+)")
ZERO_CONV = re.compile(r"zero_conv_norm_(\d+)")
DASHES: Sequence[Any] = ("-", (0, (7, 3)), (0, (3, 3)), (0, (9, 3, 2, 3)))  # pixels on and off
LOOKS = [{"color": COLOURS[i], "linestyle": DASHES[i]} for i in range(len(DASHES))]
MOST_POINTS = 400  # of a line; more would be less than a pixel apart
COLUMNS = 2
WIDTH, HEIGHT = 560, 300  # of a panel, in pixels
HEAD = 46  # above all panels
MARGINS = charts.Margins(left=72, right=20, top=82, bottom=44)
NAMES = 5  # in a row of the legend
FEW = 40  # points that are drawn as dots too
NEAR_0 = 0.4  # an axis starts at 0 where the lowest value is less than this share of the highest
SINGLE = (  # charts of one value: its name in the log, title, unit
    ("control_gap", "Control gap", "loss, shuffled minus true mask"),
    ("val_psnr_db", "PSNR of held-out images", "dB"),
    ("val_l1", "L1 of held-out images", "mean |x - x_hat| in [-1, 1]"),
    ("perceptual", "Perceptual distance", "squared, of features of length 1"),
    ("adversarial", "Adversarial loss", "minus the mean logit of x_hat"),
    ("lambda", "Adaptive weight", "lambda"),
    ("discriminator", "Discriminator's loss", "hinge loss"),
    ("grad_norm", "Gradient norm", "norm before clipping"),
    ("lr", "Learning rate", "step size of AdamW"),
    ("images_per_s", "Speed", "images / s"),
)


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    look: Mapping[str, Any] = field(default_factory=dict)  # in the words of matplotlib
    dots: bool = True  # where the points are few
    in_legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One chart over the steps."""

    title: str
    unit: str  # of the y axis
    series: Sequence[Series]
    log_scale: bool = False

    @property
    def named(self) -> list[Series]:
        """The series of the legend; one alone needs none."""
        return [one for one in self.series if one.in_legend] if len(self.series) > 1 else []


def panels(lines: Lines) -> list[Panel]:
    """Every chart whose values are in the log."""
    kinds = zip(("true", "shuffled", "empty"), LOOKS, strict=False)
    masks = [series_of(lines, f"val_loss_{kind}_mask", f"{kind} mask", look) for kind, look in kinds]
    gap, *others = (Panel(title, unit, series_of(lines, key, title)) for key, title, unit in SINGLE)
    drawn = [
        Panel("Training loss", "loss", training_loss(values_of(lines, "loss"))),
        Panel("Validation loss by timestep", "loss, log scale", bands(lines), log_scale=True),
        Panel("Does the mask help?", "validation loss", [one for found in masks for one in found]),
        gap,
        Panel("Zero convolutions", "norm of the weight", zero_convs(lines)),
        *others,
    ]
    return [panel for panel in drawn if panel.series]


def values_of(lines: Lines, key: str) -> list[Point]:
    """(step, value) of every line that has the value."""
    return [(line["step"], line[key]) for line in lines if key in line]


def series_of(lines: Lines, key: str, name: str, look: Mapping[str, Any] = LOOKS[0]) -> list[Series]:
    """One value over the steps; no series where the log does not have it."""
    points = thinned(values_of(lines, key))
    return [Series(name, points, look)] if points else []


def training_loss(points: list[Point]) -> list[Series]:
    """The loss as logged, and a running mean of it over a tenth of the run."""
    window = len(points) // 20 * 2 + 1
    if window == 1:
        return [Series("every line of the log", points)] if points else []
    return [
        Series("every line of the log", thinned(points), {"alpha": 0.35, "linewidth": 1.2}, dots=False),
        Series(f"mean of {window} lines", thinned(smoothed(points, window)), {"color": COLOURS[0]}, dots=False),
    ]


def bands(lines: Lines) -> list[Series]:
    """Validation loss in each part of the noise schedule, and their mean."""
    matches = {match[0]: match for line in lines for match in map(BAND.fullmatch, line) if match is not None}
    series = []
    for i, match in enumerate(sorted(matches.values(), key=lambda match: int(match[1]))):
        series += series_of(lines, match[0], f"t {match[1]}-{match[2]}", LOOKS[i % 4])
    mean = {"color": COLOURS[5], "linewidth": 1.5, "linestyle": (0, (2, 3))}
    return [*series, *series_of(lines, "val_loss", "mean", mean)] if series else []


def zero_convs(lines: Lines) -> list[Series]:
    """The norm of every zero convolution: fine ones pale, deep ones dark."""
    keys = sorted({key for line in lines for key in line if ZERO_CONV.fullmatch(key)})
    last = len(keys) - 1
    names = {0: "first skip", last // 2: "halfway", last: "middle block"}
    return [
        Series(
            names.get(i, f"skip {i}"),
            thinned(values_of(lines, key)),
            {"color": COLOURS[i == last], "alpha": 0.3 + 0.7 * i / max(1, last), "linewidth": 1.6},
            in_legend=i in names,
        )
        for i, key in enumerate(keys)
    ]


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """The mean over a window of lines around each, narrower at the ends; values that are not finite are left out."""
    values = np.array([value for _, value in points], dtype=float)
    kept = np.isfinite(values)
    place = np.arange(len(points))
    first, end = np.maximum(place - window // 2, 0), np.minimum(place + window // 2 + 1, len(points))
    with np.errstate(all="ignore"):  # a window without a value has no mean
        sums, counts = (np.cumsum([0.0, *terms]) for terms in (np.where(kept, values, 0.0), kept))
        means = (sums[end] - sums[first]) / (counts[end] - counts[first])
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def thinned(points: list[Point]) -> list[Point]:
    """Every n-th point, and the last, so that no more than MOST_POINTS are drawn."""
    every = math.ceil(len(points) / MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def write_curves(run: Path) -> None:
    """Draw RUN/curves.png anew from RUN/log.jsonl; nothing where nothing was logged."""
    lines = read_lines(run / "log.jsonl")
    if lines:
        draw_curves(lines, run / "curves.png")


def draw_curves(lines: Lines, path: Path) -> None:
    """Draw every chart that the lines have values for, in two columns, and write it as a PNG, atomically."""
    drawn = panels(lines)
    count = max(1, len(drawn))
    title = f"{path.resolve().parent.name}, to step {max((line['step'] for line in lines), default=0):,.0f}"
    with charts.style():
        figure, places = charts.new_figure(WIDTH, HEIGHT, count, min(COLUMNS, count), HEAD, MARGINS, title)
        for axes in places[len(drawn) :]:
            axes.set_axis_off()
        for axes, panel in zip(places, drawn, strict=False):
            left = MARGINS.right - MARGINS.left
            charts.write(axes, (left, MARGINS.top - 22), panel.title, TITLE_SIZE)
            charts.write(axes, (left, MARGINS.top - 42), panel.unit, colour=MUTED)
            draw_panel(axes, panel, NAMES, left)
        picture = charts.to_picture(figure)
    save_png(picture, path)


def draw_panel(axes: Axes, panel: Panel, names: int, left: float) -> dict[str, list[str]]:
    """Draw a chart, its legend with `names` in a row from `left` on; return the texts of its dots for charts.to_svg."""
    tooltips, handles, points = {}, [], [np.empty((0, 2))]
    for i, one in enumerate(panel.series):
        steps, values = np.array(one.points, dtype=float).reshape(-1, 2).T
        placed = np.stack([charts.with_gaps(steps), charts.with_gaps(values, panel.log_scale)], axis=1)
        few = len(placed) == 1 or (one.dots and len(placed) <= FEW)
        look = {"color": COLOURS[0], "marker": "o" if few else "", **one.look}
        # Not clipped: half a dot may stand over the axis.
        handles += axes.plot(*placed.T, clip_on=False, gid=f"series{i}", label=one.name, **look)
        points.append(placed[np.isfinite(placed).all(axis=1)])
        tooltips[f"series{i}"] = [f"{one.name}, step {x:g}: {y:.4g}" for x, y in points[-1] if few]
    if panel.named:
        charts.legend(axes, [handles[panel.series.index(one)] for one in panel.named], names, left)
    fit_axes(axes, np.concatenate(points), panel.log_scale)
    return tooltips


def fit_axes(axes: Axes, points: np.ndarray, log_scale: bool) -> None:
    """Axes from step 0 on that hold all points (n, 2); where there are none, a sentence."""
    if not len(points):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no finite value in the log", color=MUTED, ha="center", transform=axes.transAxes)
        return
    last, least, most = (float(value) for value in (points[:, 0].max(), points[:, 1].min(), points[:, 1].max()))
    low, high = charts.padded(least, most, log_scale)
    charts.scale(axes, "x", 0.0, last or 1.0, whole=True)
    charts.scale(axes, "y", 0.0 if not log_scale and 0 <= least < NEAR_0 * most else low, high, log_scale)
    axes.set_xlabel("step", loc="right")
