"""What a chart is made of, whatever draws it: series of points, axes that hold them, round ticks, colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

# On white. The first four differ in lightness or hue for people who cannot tell red from green, too.
COLOURS = ("#1c6cb3", "#c24d0a", "#2b7c4c", "#40206b", "#a52f52", "#66707a")

NEAR_0 = 0.4  # an axis starts at 0 where the lowest value is less than this share of the highest
LARGEST = 1e30  # beyond it a value is as good as infinite


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    colour: int = 0  # of COLOURS
    opacity: float = 1.0
    width: float = 2.0
    dashes: str = ""  # lengths on and off, as in SVG's stroke-dasharray
    dots: bool = True  # where the points are few
    in_legend: bool = True


@dataclass(frozen=True)
class Axes:
    """From values to places in a picture."""

    x: tuple[float, float]  # first and last value
    y: tuple[float, float]  # lowest and highest; their logarithms where log_scale
    box: Box
    log_scale: bool

    def place(self, point: Point) -> Point | None:
        """A point in the box; None for what has no place: nan, inf, and on a log scale 0 and below."""
        x, y = point
        if not (abs(x) < LARGEST and abs(y) < LARGEST) or (self.log_scale and y <= 0):
            return None
        value = math.log10(y) if self.log_scale else y
        across, down = (x - self.x[0]) / (self.x[1] - self.x[0]), (self.y[1] - value) / (self.y[1] - self.y[0])
        left, top, right, bottom = self.box
        return left + across * (right - left), top + down * (bottom - top)

    def x_ticks(self) -> list[float]:
        """Round steps; steps are whole."""
        return nice_ticks(*self.x, 5, least=1.0)

    def y_ticks(self) -> list[float]:
        """Round values."""
        return log_ticks(*self.y) if self.log_scale else nice_ticks(*self.y, 5)


def fit_axes(series: Sequence[Series], box: Box, log_scale: bool) -> Axes | None:
    """Axes that hold every point; None where no point has a place."""
    everywhere = Axes((0, 1), (0, 1), box, log_scale)
    points = [point for one in series for point in one.points if everywhere.place(point) is not None]
    if not points:
        return None
    last, y = max(point[0] for point in points), [point[1] for point in points]
    if log_scale:
        y = [math.log10(value) for value in y]
    lowest, highest = padded(min(y), max(y))
    if not log_scale and 0 <= min(y) < NEAR_0 * max(y):
        lowest = 0.0
    return Axes((0.0, last or 1.0), (lowest, highest), box, log_scale)


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


def number(value: float, digits: int = 4) -> str:
    """A short number for an axis: 0.05, 2.5, 500, 15k, 1e-05."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.{digits}g}"


def labels(ticks: Sequence[float]) -> list[str]:
    """A short number for each tick, with more digits than four only where two would else read the same."""
    written = [[number(tick, digits) for tick in ticks] for digits in range(4, 17)]
    return next((strings for strings in written if len(set(strings)) == len(strings)), written[-1])


def unbroken(placed: Sequence[Point | None]) -> list[list[Point]]:
    """The runs of two or more points that stand next to each other."""
    lines: list[list[Point]] = [[]]
    for place in placed:
        if place is None:
            lines.append([])
        else:
            lines[-1].append(place)
    return [line for line in lines if len(line) > 1]
