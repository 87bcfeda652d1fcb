"""Line charts as inline SVG: series of points -> text. Colours are the page's variables, so that dark pages work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 440, 268  # of the plot and its axes; legend rows come on top
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 30, 40  # margins
ROW = 19  # height of a legend row
LETTER = 6.9  # width of a letter, about
FEW = 40  # points that are drawn as dots too
NEAR_0 = 0.4  # an axis starts at 0 where the lowest value is less than this share of the highest
LARGEST = 1e30  # beyond it a value is as good as infinite


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    colour: int = 0  # --c0 .. --c5 of the page
    opacity: float = 1.0
    width: float = 2.0
    dashes: str = ""  # as in SVG's stroke-dasharray
    dots: bool = True  # where the points are few
    in_legend: bool = True


@dataclass(frozen=True)
class Axes:
    """From values to the view box."""

    x: tuple[float, float]  # first and last value
    y: tuple[float, float]  # lowest and highest; their logarithms where log_scale
    top: float
    log_scale: bool

    def place(self, point: Point) -> Point | None:
        """A point in the view box; None for what has no place: nan, inf, and on a log scale 0 and below."""
        x, y = point
        if not (abs(x) < LARGEST and abs(y) < LARGEST) or (self.log_scale and y <= 0):
            return None
        value = math.log10(y) if self.log_scale else y
        right, down = (x - self.x[0]) / (self.x[1] - self.x[0]), (self.y[1] - value) / (self.y[1] - self.y[0])
        plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + right * plot_width, self.top + down * plot_height


def line_chart(series: Sequence[Series], name: str, y_label: str, log_scale: bool = False) -> str:
    """Draw series over steps: axes with ticks, a legend where there are several, a tooltip on each dot."""
    legend, rows = draw_legend([one for one in series if one.in_legend]) if len(series) > 1 else ("", 0)
    height = HEIGHT + rows * ROW
    axes = fit_axes(series, TOP + rows * ROW, log_scale)
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


def fit_axes(series: Sequence[Series], top: float, log_scale: bool) -> Axes | None:
    """Axes that hold every point; None where no point has a place."""
    everywhere = Axes((0, 1), (0, 1), top, log_scale)
    points = [point for one in series for point in one.points if everywhere.place(point) is not None]
    if not points:
        return None
    last, y = max(point[0] for point in points), [point[1] for point in points]
    if log_scale:
        y = [math.log10(value) for value in y]
    lowest, highest = padded(min(y), max(y))
    if not log_scale and 0 <= min(y) < NEAR_0 * max(y):
        lowest = 0.0
    return Axes((0.0, last or 1.0), (lowest, highest), top, log_scale)


def padded(low: float, high: float) -> tuple[float, float]:
    """A little room below and above; a constant gets room of its own size."""
    room = 0.06 * (high - low) if high - low > 1e-9 * abs(high) else 0.5 * abs(high) or 1.0
    return low - room, high + room


def nice_ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """At most `most` + 1 round values from low to high: 1, 2 or 5 times a power of ten apart, at least `least`."""
    raw = max((high - low) / most, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from 10^low to 10^high; with 2 and 5 times them, or nice ticks, where those are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**p for p in powers for m in factors if low <= math.log10(m * 10.0**p) <= high]
        if len(ticks) >= 4:
            return ticks
    return [tick for tick in nice_ticks(10.0**low, 10.0**high, 4) if tick > 0]


def number(value: float) -> str:
    """A short number for an axis: 0.05, 2.5, 500, 15k, 1e-05."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def draw_axes(axes: Axes, height: float) -> str:
    """Grid lines and numbers, and the name of the x axis."""
    parts = []
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    for tick in log_ticks(*axes.y) if axes.log_scale else nice_ticks(*axes.y, 5):
        placed = axes.place((axes.x[0], tick))
        if placed is not None:
            y = placed[1]
            parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in nice_ticks(*axes.x, 5, least=1.0):  # steps are whole
        x = LEFT + (tick - axes.x[0]) / (axes.x[1] - axes.x[0]) * (right - LEFT)
        parts.append(f'<line class="tick" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>')
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


def unbroken(placed: Sequence[Point | None]) -> list[list[Point]]:
    """The runs of two or more points that stand next to each other."""
    lines: list[list[Point]] = [[]]
    for place in placed:
        if place is None:
            lines.append([])
        else:
            lines[-1].append(place)
    return [line for line in lines if len(line) > 1]


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
