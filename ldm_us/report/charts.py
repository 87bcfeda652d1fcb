"""Line charts as inline SVG: series of points -> text. Colours are the page's variables, so that dark pages work."""

from collections.abc import Sequence
from html import escape

from ldm_us.display.axes import Axes, Series, fit_axes, labels, unbroken

WIDTH, HEIGHT = 440, 268  # of the plot and its axes; legend rows come on top
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 30, 40  # margins
ROW = 19  # height of a legend row
LETTER = 6.9  # width of a letter, about
FEW = 40  # points that are drawn as dots too


def line_chart(series: Sequence[Series], name: str, y_label: str, log_scale: bool = False) -> str:
    """Draw series over steps: axes with ticks, a legend where there are several, a tooltip on each dot."""
    legend, rows = draw_legend([one for one in series if one.in_legend]) if len(series) > 1 else ("", 0)
    height = HEIGHT + rows * ROW
    axes = fit_axes(series, (LEFT, TOP + rows * ROW, WIDTH - RIGHT, height - BOTTOM), log_scale)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">',
        f'<text class="axis-label" x="0" y="13">{escape(y_label)}</text>',
        legend,
    ]
    if axes is None:
        parts.append(f'<text x="{WIDTH / 2}" y="{height / 2}" text-anchor="middle">no finite value in the log</text>')
    else:
        parts += [draw_axes(axes, height), *(draw_series(one, axes) for one in series)]
    return "".join(parts) + "</svg>"


def draw_axes(axes: Axes, height: float) -> str:
    """Grid lines and numbers, and the name of the x axis."""
    parts = []
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    y_ticks, x_ticks = axes.y_ticks(), axes.x_ticks()
    for tick, label in zip(y_ticks, labels(y_ticks), strict=True):
        placed = axes.place((axes.x[0], tick))
        if placed is not None:
            y = placed[1]
            parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick, label in zip(x_ticks, labels(x_ticks), strict=True):
        x = LEFT + (tick - axes.x[0]) / (axes.x[1] - axes.x[0]) * (right - LEFT)
        parts.append(f'<line class="tick" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="tick" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(f'<text class="axis-label" x="{right}" y="{height - 5}" text-anchor="end">step</text>')
    return "".join(parts)


def draw_series(series: Series, axes: Axes) -> str:
    """A line, broken where a value has no place, and dots where the points are few."""
    placed = [axes.place(point) for point in series.points]
    style = f"stroke:var(--c{series.colour});stroke-opacity:{series.opacity:g};stroke-width:{series.width:g}"
    dashes = f' stroke-dasharray="{series.dashes}"' if series.dashes else ""
    parts = []
    for line in unbroken(placed):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" style="{style}"{dashes}/>')
    if len(placed) == 1 or (series.dots and len(placed) <= FEW):
        fill = f"fill:var(--c{series.colour});fill-opacity:{series.opacity:g}"
        for (step, value), place in zip(series.points, placed, strict=True):
            if place is not None:
                tooltip = f"<title>{escape(series.name)}, step {step:g}: {value:.4g}</title>"
                circle = f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3" style="{fill}">'
                parts.append(f"{circle}{tooltip}</circle>")
    return "".join(parts)


def draw_legend(series: Sequence[Series]) -> tuple[str, int]:
    """A stroke and a name for each series, in as many rows as they need."""
    parts, x, row = [], 0.0, 0
    for one in series:
        width = 23 + LETTER * len(one.name) + 9
        if x > 0 and x + width > WIDTH:
            x, row = 0.0, row + 1
        y = TOP + row * ROW + 4
        style = f"stroke:var(--c{one.colour});stroke-opacity:{one.opacity:g};stroke-width:3"
        dashes = f' stroke-dasharray="{one.dashes}"' if one.dashes else ""
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x + 18:.1f}" y2="{y}" style="{style}"{dashes}/>')
        parts.append(f'<text x="{x + 23:.1f}" y="{y + 4}">{escape(one.name)}</text>')
        x += width
    return "".join(parts), row + 1
