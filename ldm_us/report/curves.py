"""The curves of a run for its report: what its log holds, drawn as SVG."""

import math
from typing import NamedTuple

from ldm_us.display import charts
from ldm_us.training.curves import Lines, Panel, draw_panel, panels

WIDTH, HEIGHT = 400, 250  # pixels of a chart; the rows of its legend come on top
LEFT, RIGHT, ABOVE, BOTTOM = 60, 16, 28, 42  # margins of the plot in it
NAMES, ROW = 3, 18  # names in a row of the legend, and its height


class Curve(NamedTuple):
    """A chart and what it shows."""

    panel: Panel
    svg: str


def curves(run: str, lines: Lines) -> list[Curve]:
    """Every curve whose values are in the log of the run with this name."""
    return [Curve(panel, draw(panel, f"{panel.title}, {run}")) for panel in panels(lines)]


def draw(panel: Panel, name: str) -> str:
    """The chart as SVG, with a text on each dot."""
    rows = math.ceil(len(panel.named) / NAMES) * ROW
    margins = charts.Margins(LEFT, RIGHT, ABOVE + rows, BOTTOM)
    with charts.style():
        figure, (axes,) = charts.new_figure(WIDTH, HEIGHT + rows, margins=margins)
        charts.write(axes, (-LEFT, margins.top - 12), panel.unit, colour=charts.MUTED)
        tooltips = draw_panel(axes, panel, NAMES, -LEFT)
        return charts.to_svg(figure, name, tooltips)
