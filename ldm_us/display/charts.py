"""The look of every chart, drawn by matplotlib: colours, sizes in pixels, round ticks; as a picture or as inline SVG.

Draw inside `with style():`, from new_figure to to_picture or to_svg. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# On white. The first four differ in lightness or hue for people who cannot tell red from green, too.
COLOURS = ("#1c6cb3", "#c24d0a", "#2b7c4c", "#40206b", "#a52f52", "#66707a")
INK, MUTED, GRID = "#1d2125", "#59626b", "#dde1e5"
# The names of these colours in the style sheet of a page, which has others of the same names for the dark.
VARIABLES = {f"--c{i}": colour for i, colour in enumerate(COLOURS)} | {"--ink": INK, "--muted": MUTED, "--line": GRID}

HEAD_SIZE, TITLE_SIZE, TEXT_SIZE = 20, 16, 12  # pixels
DPI = 72  # a pixel of a picture is a point, the unit of matplotlib's letters and strokes
LARGEST = 1e30  # beyond it a value is as good as infinite, and below its inverse as good as 0 on a log scale
STYLE = Path(__file__).with_name("charts.mplstyle")
STYLE_COLOURS = {
    "text.color": INK,
    "grid.color": GRID,
    "axes.prop_cycle": f"cycler('color', {COLOURS})",
} | dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), MUTED)


class Margins(NamedTuple):
    """Pixels around the plot of a panel: for its numbers, and for the title, unit and legend above it."""

    left: float = 72
    right: float = 20
    top: float = 58
    bottom: float = 44


@contextmanager
def style() -> Iterator[None]:
    """The look of this project, whatever the matplotlibrc of the user says; what was set before is set again after."""
    from matplotlib.style import context

    with context(["default", STYLE, STYLE_COLOURS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # it is drawn as a box
        yield


def new_figure(
    width: float,
    height: float,
    count: int = 1,
    columns: int = 1,
    head: float = 0,
    margins: Margins = Margins(),  # noqa: B008
    title: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of width x height pixels each, in rows of `columns`, below a head with the title."""
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(count / columns))
    whole = (columns * width, head + rows * height)
    figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI), dpi=DPI, facecolor="white")
    figure.text(margins.right / whole[0], 1 - 30 / whole[1], plain(title), size=HEAD_SIZE)
    panels = []
    for i in range(count):
        left, bottom = i % columns * width + margins.left, (rows - 1 - i // columns) * height + margins.bottom
        box = (left, bottom, width - margins.left - margins.right, height - margins.top - margins.bottom)
        panels.append(figure.add_axes((box[0] / whole[0], box[1] / whole[1], box[2] / whole[0], box[3] / whole[1])))
    return figure, panels


def write(axes: Axes, place: tuple[float, float], text: str, size: float = TEXT_SIZE, colour: str = INK) -> None:
    """A line of text at so many pixels to the right of the plot's left edge and above its top."""
    axes.annotate(plain(text), (0, 1), place, "axes fraction", "offset points", size=size, color=colour, va="baseline")


def legend(axes: Axes, lines: Sequence[Line2D], columns: int, shift: float = 0) -> None:
    """Names above the plot, in rows of `columns`, from so many pixels to the right of its left edge on."""
    from matplotlib.transforms import Affine2D

    place = axes.transAxes + Affine2D().translate(shift, 10)
    axes.legend(handles=lines, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), bbox_transform=place)


def plain(text: str) -> str:
    """A text without line breaks and whatever else has no letter, so that it can be drawn and written to XML."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def with_gaps(values: Sequence[float] | np.ndarray, log_scale: bool = False) -> np.ndarray:
    """Values to draw; nan, which breaks a line, for what has no place: nan, inf, on a log scale 0 and below."""
    drawn = np.array(values, dtype=float)
    drawn[~(np.abs(drawn) < LARGEST)] = np.nan
    if log_scale:
        drawn[drawn < 1 / LARGEST] = np.nan
    return drawn


def padded(low: float, high: float, log_scale: bool = False) -> tuple[float, float]:
    """A little room below and above; a constant gets room of its own size."""
    if log_scale:
        low, high = padded(math.log10(low), math.log10(high))
        return 10.0**low, 10.0**high
    room = 0.06 * (high - low) if high - low > 1e-9 * abs(high) else 0.5 * abs(high) or 1.0
    return low - room, high + room


def scale(
    axes: Axes, name: str, low: float, high: float, log_scale: bool = False, whole: bool = False, most: int = 5
) -> None:
    """Let the axis "x" or "y" go from low to high, with about `most` round ticks; `whole`: at whole numbers only."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    decades = math.log10(high / low) if log_scale else 0.0
    axes.set(**{f"{name}scale": "log" if log_scale else "linear"})
    if decades > 0.5:
        factors = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 3 else (1.0,)
        ticks = LogLocator(subs=factors, numticks=most + 3).tick_values(low, high)
    else:
        ticks = MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1).tick_values(low, high)
    room = 0.0 if log_scale else 1e-9 * (high - low)  # for ticks at the very ends
    inside = [float(tick) for tick in ticks if low - room <= tick <= high + room]
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_ticks(inside, labels(inside))
    axis.set_ticks([], minor=True)
    axes.set(**{f"{name}lim": (low, high)})


def labels(ticks: Sequence[float]) -> list[str]:
    """A short number for each tick, with more digits than four only where two would else read the same."""
    written = [[number(tick, digits) for tick in ticks] for digits in range(4, 17)]
    return next((strings for strings in written if len(set(strings)) == len(strings)), written[-1])


def number(value: float, digits: int = 4) -> str:
    """A short number for an axis: 0.05, 2.5, 500, 15k, 1e-05."""
    if abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.{digits}g}"


def to_picture(figure: Figure) -> Image.Image:
    """What was drawn, pixel for pixel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def to_svg(figure: Figure, name: str, tooltips: Mapping[str, Sequence[str]] | None = None) -> str:
    """What was drawn as SVG for an HTML page, in the page's colours, width and letters; `name` is read out instead.

    No two charts of a page should have the same name. `tooltips`: for a line of dots that was drawn with this gid, a
    text for each dot that has a place.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)  # the page shows through
    file = io.StringIO()
    with rc_context({"svg.hashsalt": plain(name)}):  # the same chart has the same bytes, and no id of another one
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        tidy(element)
    for group in root.iter("g"):
        gid = group.attrib.pop("id", "")
        if tooltips and gid in tooltips:
            group.set("class", gid)
            for dot, text in zip([*group.iter("use")], tooltips[gid], strict=True):
                ElementTree.SubElement(dot, "title").text = plain(text)
    for element in [*root.findall("metadata"), *root.findall("defs[style]")]:  # its rules are in style.css
        root.remove(element)
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "chart", "role": "img", "aria-label": plain(name)}
    return ElementTree.tostring(root, encoding="unicode")


def tidy(element: ElementTree.Element) -> None:
    """Take from a part of an SVG what a page does not need: prefixes, spaces, digits, fonts; and give it variables."""
    element.tag = element.tag.partition("}")[2]
    element.tail = None
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.attrib = {key.partition("}")[2] or key: value for key, value in element.attrib.items()}
    for key in {"d", "x", "y", "transform"} & set(element.attrib):
        element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[key]))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    css = element.attrib.pop("style", "")
    for variable, colour in VARIABLES.items():
        css = css.replace(f": {colour}", f": var({variable})")
    css = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", css)  # of older versions of matplotlib
    if css:
        element.set("style", re.sub(r"font-family: [^;]*(; )?", "", css))
