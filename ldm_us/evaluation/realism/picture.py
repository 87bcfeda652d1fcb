"""realism.png: the distributions of every figure in both sets, side by side as small multiples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ldm_us.data.audit.statistics import BANDS
from ldm_us.display.charts import (
    COLOURS,
    DPI,
    MUTED,
    TITLE_SIZE,
    Margins,
    new_figure,
    padded,
    scale,
    style,
    to_picture,
    write,
)
from ldm_us.evaluation.realism.comparison import FigureTest, title_of
from ldm_us.evaluation.realism.measures import FIGURES
from ldm_us.evaluation.realism.table import QUARTILES, effect_text, p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
WIDTH, HEIGHT, HEAD = 380, 268, 68  # of a panel, and above all panels, in pixels
AROUND = Margins(left=20, right=20, top=74, bottom=30)  # of a plot
NUMBERS = 28  # pixels for the numbers at the left of the depth profile
SETS = (COLOURS[0], COLOURS[1])  # real, the other
DASHES: tuple[tuple[float, Sequence[float]], ...] = ((0, ()), (0, (6, 3)))
OPACITY = 0.22  # of the filled distribution
INNER = (1.0, 99.0)  # percentiles between which the bins lie; the first and the last hold what is beyond
MOST_BINS, FEWEST_BINS = 24, 8
DEPTH = "depth_"


def draw_realism(tests: Sequence[FigureTest], title: str, names: tuple[str, str], note: str) -> Image.Image:
    """A panel for every test of a figure, the depth bands in one; `names` are those of the sets."""
    depth = [test for test in tests if test.name.startswith(DEPTH)]
    single = [test for test in tests if not test.name.startswith(DEPTH)]
    shown: list[FigureTest | None] = [test for test in single if test.label is None]  # None: the depth profile
    shown += [None] * (len(depth) == BANDS) + [test for test in single if test.label is not None]
    with style():
        figure, panels = new_figure(WIDTH, HEIGHT, len(shown), COLUMNS, HEAD, AROUND, title)
        draw_head(figure, names, note)
        for panel, test in zip(panels, shown, strict=True):
            if test is None:
                draw_depth(panel, depth)
            else:
                draw_distributions(panel, test)
        return to_picture(figure)


def draw_head(figure: Figure, names: tuple[str, str], note: str) -> None:
    """A stroke and a name for each set, and what the panels hold."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches() * DPI
    strokes = [Line2D([], [], color=c, linestyle=dashes, lw=3) for c, dashes in zip(SETS, DASHES, strict=True)]
    corner = (AROUND.left / width, 1 - 50 / height)
    legend = figure.legend(
        strokes, names, loc="center left", bbox_to_anchor=corner, borderaxespad=0, borderpad=0, ncols=2, fontsize=13
    )
    beside = legend.get_window_extent().x1 + 20
    figure.text(beside / width, 1 - 50 / height, note, color=MUTED, va="center_baseline")


def draw_heading(panel: Axes, lines: tuple[str, str, str], left: float = 0) -> None:
    """Title, unit and test of a panel."""
    write(panel, (left, 52), lines[0], TITLE_SIZE)
    write(panel, (left, 33), lines[1], colour=MUTED)
    write(panel, (left, 15), lines[2])


def draw_distributions(panel: Axes, test: FigureTest) -> None:
    """The histogram of each set, as high as its share of images, and its median."""
    draw_heading(panel, (title_of(test.name, test.label), FIGURES[test.name].unit, tested(test)))
    log_scale = FIGURES[test.name].log_scale
    sets = [np.log10(values) if log_scale else values for values in (test.real, test.other)]
    edges = bin_edges(*sets)
    shares = [histogram(values, edges) for values in sets]
    medians = [np.clip(np.median(values), edges[0], edges[-1]) for values in sets]
    if log_scale:
        edges, medians = 10**edges, [10**median for median in medians]
    panel.stairs(shares[0], edges, fill=True, color=SETS[0], alpha=OPACITY)
    for share, median, colour, dashes in zip(shares, medians, SETS, DASHES, strict=True):
        panel.stairs(share, edges, color=colour, lw=2, linestyle=dashes, clip_on=False)
        panel.axvline(float(median), color=colour, lw=1.5, linestyle=dashes)
    scale(panel, "x", float(edges[0]), float(edges[-1]), log_scale)
    panel.set(ylim=(0, 1.08 * max(share.max() for share in shares)), yticks=[])


def bin_edges(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Edges of equal bins, more of them where there are more values."""
    low, high = np.percentile(np.concatenate([first, second]), INNER)
    if not high > low:
        low, high = padded(float(low), float(high))
    bins = int(np.clip(2 * math.sqrt(min(len(first), len(second))), FEWEST_BINS, MOST_BINS))
    return np.linspace(low, high, bins + 1)


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of the values in each bin; what is beyond counts in the first or the last."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / len(values)


def draw_depth(panel: Axes, tests: Sequence[FigureTest]) -> None:
    """Grey against depth: medians, and between the quartiles of the first set a band."""
    worst = max(tests, key=lambda test: abs(test.difference.effect))
    differs = f"band {worst.name.removeprefix(DEPTH)} differs most: {tested(worst)}"
    heading = ("Depth profile", "grey levels from the skin down; shaded: real quartiles", differs)
    draw_heading(panel, heading, -NUMBERS)
    place = panel.get_position()
    place.x0 += NUMBERS / (COLUMNS * WIDTH)
    panel.set_position(place)
    both = [test.real for test in tests], [test.other for test in tests]
    quartiles = [np.array([np.percentile(v, QUARTILES) for v in values]) for values in both]  # (bands, 3) each
    low, high = padded(min(float(q.min()) for q in quartiles), max(float(q.max()) for q in quartiles))
    bands = range(1, BANDS + 1)
    panel.fill_between(bands, quartiles[0][:, 0], quartiles[0][:, 2], color=SETS[0], alpha=OPACITY, lw=0)
    for one, colour, dashes in zip(quartiles, SETS, DASHES, strict=True):
        panel.plot(bands, one[:, 1], color=colour, linestyle=dashes)
    scale(panel, "x", 0.5, BANDS + 0.5, whole=True, most=BANDS)
    scale(panel, "y", max(0.0, low), high)


def tested(test: FigureTest) -> str:
    """The effect, its interval and p."""
    p = p_text(test.p_holm)
    return f"{effect_text(test)}, p {p if p.startswith('<') else f'= {p}'}"
