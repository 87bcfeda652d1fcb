"""The curves of a run: what its log holds, drawn, each with one sentence on how to read it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ldm_us.report.charts import Point, Series, line_chart

Lines = Sequence[dict[str, float]]

BAND = re.compile(r"val_loss_(\d+)_(\d+)")
ZERO_CONV = re.compile(r"zero_conv_norm_(\d+)")
MOST_POINTS = 400  # of a line; more would be less than a pixel apart

TRAINING_LOSS = {
    "vae": "Mean distance |x - x_hat| in [-1, 1] plus a small KL term, on training images with flips: it should fall "
    "fast, then slowly, as finer speckle is kept.",
    "unet": "Mean squared error of the predicted noise on training images; 1 is the loss of predicting zero. From "
    "trained weights it hardly falls although the model learns: it averages over all noise levels, drawn anew at every "
    "step. Read the bands instead.",
    "controlnet": "Mean squared error of the predicted noise on training images. It hardly falls although the model "
    "learns: the frozen UNet already predicts most of the noise, and the mask helps at few noise levels. Read the gap "
    "between true and shuffled masks instead.",
}


@dataclass(frozen=True)
class Curve:
    """A chart and its meaning."""

    title: str
    svg: str
    meaning: str


def curves(stage: str, lines: Lines) -> list[Curve]:
    """Every curve whose values are in the log."""
    drawn = [training_loss(stage, lines), bands(lines), masks(lines), plain(lines, *GAP), zero_convs(lines)]
    drawn += [plain(lines, *figure) for figure in FIGURES]
    return [curve for curve in drawn if curve is not None]


GAP = (
    "control_gap",
    "Control gap",
    "loss",
    "Loss with a shuffled mask minus loss with the true one: 0 while the mask is ignored, above 0 once the ControlNet "
    "uses it. Small numbers count, because only a part of the noise depends on the mask.",
)
FIGURES = (
    (
        "val_psnr_db",
        "PSNR of held-out images",
        "dB",
        "How close held-out images come back from the autoencoder: 3 dB more is half the squared error.",
    ),
    (
        "val_l1",
        "L1 of held-out images",
        "mean |x - x_hat| in [-1, 1]",
        "The same as a mean distance: lower is better, and a rise while the training loss falls is overfitting.",
    ),
    (
        "grad_norm",
        "Gradient norm",
        "norm before clipping",
        "How hard each step pulls: peaks are clipped; a steady rise means that training is becoming unstable.",
    ),
    (
        "lr",
        "Learning rate",
        "step size of AdamW",
        "A line up during the warm-up, then constant.",
    ),
    (
        "images_per_s",
        "Speed",
        "images / s",
        "Training images per second, without validation and sampling: dips are other work on the machine.",
    ),
)


def values_of(lines: Lines, key: str) -> list[Point]:
    """(step, value) of every line that has the value."""
    return [(line["step"], line[key]) for line in lines if key in line]


def plain(lines: Lines, key: str, title: str, unit: str, meaning: str) -> Curve | None:
    """One value over the steps."""
    points = thinned(values_of(lines, key))
    return Curve(title, line_chart([Series(title, points)], title, unit), meaning) if points else None


def training_loss(stage: str, lines: Lines) -> Curve | None:
    """The loss as logged, and a running mean of it."""
    points = values_of(lines, "loss")
    if not points:
        return None
    series = [Series("every line of the log", thinned(points))]
    window = len(points) // 20 * 2 + 1  # a tenth of the run
    if window > 1:
        series = [Series("every line of the log", thinned(points), opacity=0.35, width=1.2, dots=False)]
        series.append(Series(f"mean of {window} lines", thinned(smoothed(points, window)), width=2.4, dots=False))
    title = "Training loss"
    return Curve(title, line_chart(series, title, "loss"), TRAINING_LOSS[stage])


def bands(lines: Lines) -> Curve | None:
    """Validation loss in each part of the noise schedule, and their mean."""
    found = {key: match for line in lines for key in line if (match := BAND.fullmatch(key))}
    if not found:
        return None
    series = [
        Series(f"t {found[key][1]}-{found[key][2]}", values_of(lines, key), i % 4, dashes=DASHES[i % 4])
        for i, key in enumerate(sorted(found, key=lambda key: int(found[key][1])))
    ]
    series.append(Series("mean", values_of(lines, "val_loss"), 5, width=1.5, dashes="2 3"))
    meaning = (
        "Held-out images with the same noise every time, so every change is the model's. Small t: little noise, only "
        "the finest speckle is predicted. Large t: nearly pure noise, where the composition of a sample is decided; "
        "small gains there matter. A rise is overfitting."
    )
    title = "Validation loss by timestep"
    return Curve(title, line_chart(series, title, "loss, log scale", log_scale=True), meaning)


DASHES = ("", "7 3", "3 3", "9 3 2 3")


def masks(lines: Lines) -> Curve | None:
    """Validation loss on lesion images with three kinds of mask."""
    series = [
        Series(kind, points, colour, dashes=DASHES[colour])
        for colour, kind in enumerate(("true", "shuffled", "empty"))
        if (points := values_of(lines, f"val_loss_{kind}_mask"))
    ]
    meaning = (
        "The same held-out lesions, the same noise, with their own mask, with that of another lesion, and with none. A "
        "ControlNet that follows masks does best with the true one and worst with a wrong one."
    )
    title = "Does the mask help?"
    return Curve(title, line_chart(series, title, "validation loss"), meaning) if series else None


def zero_convs(lines: Lines) -> Curve | None:
    """The norm of every zero convolution: fine ones pale, deep ones dark."""
    keys = sorted({key for line in lines for key in line if ZERO_CONV.fullmatch(key)})
    if not keys:
        return None
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
    meaning = (
        f"The weights that tie the ControlNet to the UNet, {len(keys)} convolutions that all start at 0: a line that "
        "leaves 0 is a level at which the mask is let in."
    )
    title = "Zero convolutions"
    return Curve(title, line_chart(series, title, "norm of the weight"), meaning)


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
