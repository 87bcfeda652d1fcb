"""realism.png: the distributions of every figure in both sets, side by side as small multiples."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ldm_us.data.audit.statistics import BANDS
from ldm_us.display.axes import COLOURS, Axes, Box, Point, labels, log_ticks, nice_ticks, padded
from ldm_us.display.canvas import Canvas, faded, length_of
from ldm_us.evaluation.realism.comparison import QUARTILES, Row
from ldm_us.evaluation.realism.measures import FIGURES
from ldm_us.evaluation.realism.table import effect_text, p_text

COLUMNS = 3
WIDTH, HEIGHT = 380, 268  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 20, 20, 74, 30  # of the plot in it
DEPTH_LEFT = 48  # of the plot with numbers on its left
HEAD = 64  # above all panels
TITLE_SIZE, TEXT_SIZE = 16, 12
INK, MUTED, GRID = "#1d2125", "#59626b", "#dde1e5"
SETS = (COLOURS[0], COLOURS[1])  # real, the other
DASHES = ("", "6 3")
OPACITY = 0.22  # of the filled distribution
INNER = (1.0, 99.0)  # percentiles between which the bins lie; the first and the last hold what is beyond
MOST_BINS, FEWEST_BINS = 24, 8
DEPTH = "depth_"


def draw_realism(rows: Sequence[Row], title: str, names: tuple[str, str], note: str) -> Image.Image:
    """A panel for every row, the depth bands in one; `names` are those of the sets."""
    depth = [row for row in rows if row.name.startswith(DEPTH)]
    single = [row for row in rows if not row.name.startswith(DEPTH)]
    of_images = [row for row in single if row.label is None]
    panels: list[list[Row]] = [*([row] for row in of_images), *([depth] if len(depth) == BANDS else [])]
    panels += [[row] for row in single if row.label is not None]
    canvas = Canvas(COLUMNS * WIDTH, HEAD + max(1, math.ceil(len(panels) / COLUMNS)) * HEIGHT)
    canvas.text((LEFT, 28), title, 20, INK)
    draw_legend(canvas, names, note)
    for i, panel in enumerate(panels):
        left, top = i % COLUMNS * WIDTH, HEAD + i // COLUMNS * HEIGHT
        if panel is depth:
            draw_depth(canvas, depth, left, top)
        else:
            draw_distributions(canvas, panel[0], left, top)
    return canvas.picture()


def draw_legend(canvas: Canvas, names: tuple[str, str], note: str) -> None:
    """A stroke and a name for each set, and what the panels hold."""
    x = float(LEFT)
    for name, colour, dashes in zip(names, SETS, DASHES, strict=True):
        canvas.line([(x, 48), (x + 26, 48)], colour, 3, dashes)
        canvas.text((x + 34, 48), name, TEXT_SIZE + 1, INK, "lm")
        x += 34 + length_of(name, TEXT_SIZE + 1) + 28
    canvas.text((x, 48), note, TEXT_SIZE, MUTED, "lm")


def draw_heading(canvas: Canvas, lines: tuple[str, str, str], left: float, top: float) -> None:
    """Title, unit and test of a panel."""
    canvas.text((left + LEFT, top + 22), lines[0], TITLE_SIZE, INK)
    canvas.text((left + LEFT, top + 41), lines[1], TEXT_SIZE, MUTED)
    canvas.text((left + LEFT, top + 59), lines[2], TEXT_SIZE, INK)


def draw_distributions(canvas: Canvas, row: Row, left: float, top: float) -> None:
    """The histogram of each set, as high as its share of images, and its median."""
    draw_heading(canvas, (row.title, FIGURES[row.name].unit, tested(row)), left, top)
    log_scale = FIGURES[row.name].log_scale
    sets = [np.log10(values) if log_scale else values for values in (row.real, row.other)]
    edges = bin_edges(*sets)
    shares = [histogram(values, edges) for values in sets]
    box = (left + LEFT, top + TOP, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM)
    axes = Axes((float(edges[0]), float(edges[-1])), (0.0, 1.08 * float(max(one.max() for one in shares))), box, False)
    ticks = log_ticks(*axes.x) if log_scale else nice_ticks(*axes.x, 6)
    draw_x_axis(canvas, axes, labels(ticks), [math.log10(tick) for tick in ticks] if log_scale else ticks)
    for share, colour, dashes, fill in zip(shares, SETS, DASHES, (True, False), strict=True):
        outline = [placed(axes, point) for point in steps(edges, share)]
        if fill:
            canvas.area(outline, faded(colour, OPACITY))
        canvas.line(outline, colour, 2, dashes)
    for values, colour, dashes in zip(sets, SETS, DASHES, strict=True):
        median = float(np.clip(np.median(values), edges[0], edges[-1]))
        canvas.line([placed(axes, (median, 0.0)), placed(axes, (median, axes.y[1]))], colour, 1.5, dashes)


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


def steps(edges: np.ndarray, shares: np.ndarray) -> list[Point]:
    """The outline of a histogram, from the axis up and back to it."""
    x, y = np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(shares, 2), [0.0]])
    return list(zip(x.tolist(), y.tolist(), strict=True))


def draw_depth(canvas: Canvas, rows: Sequence[Row], left: float, top: float) -> None:
    """Grey against depth: medians, and between the quartiles of the first set a band."""
    worst = max(rows, key=lambda row: abs(row.difference.effect))
    band = worst.name.removeprefix(DEPTH)
    test = f"band {band} differs most: {tested(worst)}"
    draw_heading(
        canvas,
        (
            "Depth profile",
            "grey levels from the skin down; shaded: real quartiles",
            test,
        ),
        left,
        top,
    )
    quartiles = [np.array([np.percentile(v, QUARTILES) for v in sets]) for sets in zip(*map(_both, rows), strict=True)]
    low, high = padded(min(float(q.min()) for q in quartiles), max(float(q.max()) for q in quartiles))
    box: Box = (left + DEPTH_LEFT, top + TOP, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM)
    axes = Axes((0.5, BANDS + 0.5), (max(0.0, low), high), box, False)
    bands = range(1, BANDS + 1)
    draw_x_axis(canvas, axes, [str(band) for band in bands], list(bands))
    ticks = nice_ticks(*axes.y, 5)
    for tick, label in zip(ticks, labels(ticks), strict=True):
        canvas.line([placed(axes, (axes.x[0], tick)), placed(axes, (axes.x[1], tick))], GRID, 1)
        canvas.text((box[0] - 8, placed(axes, (axes.x[0], tick))[1]), label, TEXT_SIZE, MUTED, "rm")
    upper, lower = ([placed(axes, (i + 1, q)) for i, q in enumerate(quartiles[0][:, k])] for k in (2, 0))
    canvas.area([*upper, *lower[::-1]], faded(SETS[0], OPACITY))
    for one, colour, dashes in zip(quartiles, SETS, DASHES, strict=True):
        canvas.line([placed(axes, (i + 1, median)) for i, median in enumerate(one[:, 1])], colour, 2, dashes)


def _both(row: Row) -> tuple[np.ndarray, np.ndarray]:
    return row.real, row.other


def draw_x_axis(canvas: Canvas, axes: Axes, names: Sequence[str], places: Sequence[float]) -> None:
    """The line under a plot, and names at places on it."""
    left, _, right, bottom = axes.box
    canvas.line([(left, bottom), (right, bottom)], MUTED, 1)
    for label, place in zip(names, places, strict=True):
        x = placed(axes, (place, axes.y[0]))[0]
        canvas.line([(x, bottom), (x, bottom + 5)], MUTED, 1)
        canvas.text((x, bottom + 8), label, TEXT_SIZE, MUTED, "ma")


def tested(row: Row) -> str:
    """The effect, its interval and p."""
    p = p_text(row.p_holm)
    return f"{effect_text(row)}, p {p if p.startswith('<') else f'= {p}'}"


def placed(axes: Axes, point: Point) -> Point:
    """Where a finite point is in the picture."""
    place = axes.place(point)
    assert place is not None
    return place
