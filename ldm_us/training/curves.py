"""RUN/curves.png: what the log of a run holds, as charts that can be looked at while it trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm_us.display import charts
from ldm_us.display.charts import COLOURS, MUTED, TITLE_SIZE
from ldm_us.files.pictures import save_png
from ldm_us.training.panels import Lines, Panel, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
WIDTH, HEIGHT = 560, 300  # of a panel, in pixels
HEAD = 46  # above all panels
MARGINS = charts.Margins(left=72, right=20, top=82, bottom=44)
NAMES = 5  # in a row of the legend
FEW = 40  # points that are drawn as dots too
NEAR_0 = 0.4  # an axis starts at 0 where the lowest value is less than this share of the highest


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
    step = line.get("step") if isinstance(line, dict) else None
    if not isinstance(step, int | float) or not math.isfinite(step):
        return {}
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


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
