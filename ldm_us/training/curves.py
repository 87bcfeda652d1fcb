"""RUN/curves.png: what the log of a run holds, as charts that can be looked at while it trains."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ldm_us.display.axes import COLOURS, Axes, Series, fit_axes, labels, unbroken
from ldm_us.display.canvas import Canvas, faded, length_of
from ldm_us.files.pictures import save_png
from ldm_us.training.panels import Lines, Panel, panels

COLUMNS = 2
WIDTH, HEIGHT = 560, 300  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 66, 44  # of the plot in it; a second row of the legend moves the top
HEAD = 46  # above all panels
TITLE_SIZE, TEXT_SIZE, ROW = 16, 12, 17
INK, MUTED, GRID = "#1d2125", "#59626b", "#dde1e5"
FEW = 40  # points that are drawn as dots too


def write_curves(run: Path) -> None:
    """Draw RUN/curves.png anew from RUN/log.jsonl; nothing where nothing was logged."""
    lines = read_lines(run / "log.jsonl")
    if lines:
        draw_curves(lines, run / "curves.png")


def read_lines(path: Path) -> list[dict[str, float]]:
    """The numbers in a log, line by line; a line that is not whole, and a log that is not there, are left out."""
    if not path.is_file():
        return []
    lines = (read_line(row) for row in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line]


def read_line(row: str) -> dict[str, float]:
    """The numbers of a row of the log; none where it is not whole or has no step."""
    try:
        line = json.loads(row)
    except ValueError:
        return {}
    if not isinstance(line, dict) or not is_finite(line.get("step")):
        return {}
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


def is_finite(value: object) -> bool:
    """A number that an axis can hold."""
    return isinstance(value, int | float) and math.isfinite(value)


def draw_curves(lines: Lines, path: Path) -> None:
    """Draw every chart that the lines have values for, in two columns, and write it as a PNG, atomically."""
    charts = panels(lines)
    columns = min(COLUMNS, max(1, len(charts)))
    canvas = Canvas(columns * WIDTH, HEAD + max(1, math.ceil(len(charts) / COLUMNS)) * HEIGHT)
    last = max((line["step"] for line in lines), default=0)
    canvas.text((20, 30), f"{path.resolve().parent.name}, to step {last:,.0f}", 20, INK)
    for i, panel in enumerate(charts):
        draw_panel(canvas, panel, i % COLUMNS * WIDTH, HEAD + i // COLUMNS * HEIGHT)
    save_png(canvas.picture(), path)


def draw_panel(canvas: Canvas, panel: Panel, left: float, top: float) -> None:
    """A chart with its title, its unit, its legend and its axes, its upper left corner at (left, top)."""
    canvas.text((left + 20, top + 20), panel.title, TITLE_SIZE, INK)
    canvas.text((left + 20, top + 40), panel.unit, TEXT_SIZE, MUTED)
    rows = 0
    if len(panel.series) > 1:
        start = left + 20 + length_of(panel.unit, TEXT_SIZE) + 24
        rows = draw_legend(canvas, [one for one in panel.series if one.in_legend], start, left + WIDTH - RIGHT, top)
    plot_top = top + TOP + max(0, rows - 1) * ROW - 8
    box = (left + LEFT, plot_top, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM)
    axes = fit_axes(panel.series, box, panel.log_scale)
    if axes is None:
        canvas.text((left + WIDTH / 2, top + HEIGHT / 2), "no finite value in the log", TEXT_SIZE, MUTED, "mm")
        return
    draw_axes(canvas, axes)
    for one in panel.series:
        draw_series(canvas, one, axes)


def draw_legend(canvas: Canvas, series: Sequence[Series], left: float, right: float, top: float) -> int:
    """A stroke and a name for each series beside the unit; return the rows that they take."""
    x, row = left, 0
    for one in series:
        width = 26 + length_of(one.name, TEXT_SIZE) + 14
        if x > left and x + width - 14 > right:
            x, row = left, row + 1
        y = top + 36 + row * ROW
        canvas.line([(x, y), (x + 20, y)], faded(COLOURS[one.colour], one.opacity), one.width + 0.5, one.dashes)
        canvas.text((x + 26, y), one.name, TEXT_SIZE, INK, "lm")
        x += width
    return row + 1


def draw_axes(canvas: Canvas, axes: Axes) -> None:
    """Grid lines and numbers, and the name of the x axis."""
    left, _, right, bottom = axes.box
    y_ticks, x_ticks = axes.y_ticks(), axes.x_ticks()
    for tick, label in zip(y_ticks, labels(y_ticks), strict=True):
        placed = axes.place((axes.x[0], tick))
        if placed is not None:
            canvas.line([(left, placed[1]), (right, placed[1])], GRID, 1)
            canvas.text((left - 8, placed[1]), label, TEXT_SIZE, MUTED, "rm")
    canvas.line([(left, bottom), (right, bottom)], MUTED, 1)
    for tick, label in zip(x_ticks, labels(x_ticks), strict=True):
        x = left + (tick - axes.x[0]) / (axes.x[1] - axes.x[0]) * (right - left)
        canvas.line([(x, bottom), (x, bottom + 5)], MUTED, 1)
        canvas.text((x, bottom + 8), label, TEXT_SIZE, MUTED, "ma")
    canvas.text((right, bottom + 25), "step", TEXT_SIZE, MUTED, "ra")


def draw_series(canvas: Canvas, series: Series, axes: Axes) -> None:
    """A line, broken where a value has no place, and dots where the points are few."""
    placed = [axes.place(point) for point in series.points]
    colour = faded(COLOURS[series.colour], series.opacity)
    for line in unbroken(placed):
        canvas.line(line, colour, series.width, series.dashes)
    if len(placed) == 1 or (series.dots and len(placed) <= FEW):
        for place in placed:
            if place is not None:
                canvas.dot(place, 2.5, colour)
