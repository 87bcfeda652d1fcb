"""The picture of a drift: every tensor's relative change, block by block in the order of the network, as inline SVG."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ldm_us.display.charts import COLOURS, INK, MUTED, Margins, labels, legend, new_figure, padded, scale, style, to_svg
from weights_convert.audit.blocks import KIND_NAMES, block_of, kind_of
from weights_convert.audit.drift import Drift, by_block
from weights_convert.audit.text import ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, MARGINS = 920, 370, Margins(left=64, right=8, top=56, bottom=64)
SHADE = "#80889020"  # behind every second block; it shows on white and on black
ROW = 0.07  # of the axis: the height of the rows for what has no place on a logarithmic axis
BELOW: dict[str, Any] = {  # of a text
    "xycoords": ("data", "axes fraction"),
    "textcoords": "offset points",
    "ha": "center",
    "va": "top",
    "size": 11,
}
BAR = {"marker": "_", "markeredgewidth": 2.5, "color": INK, "gid": "blocks"}


def drift_chart(drifts: Sequence[Drift], name: str) -> str:
    """Draw the tensors of one part as dots, hollow for a vector, and each block as a bar: see GroupDrift."""
    blocks = by_block(drifts)
    own = {block.name: [drift for drift in drifts if block_of(drift.target)[1] == block.name] for block in blocks}
    dots, bars = defaultdict(list), []  # (kind of layer, whether a vector) -> (x, relative change, tooltip); the same
    for i, block in enumerate(blocks):
        bars.append((i + 0.5, block.relative, f"{block.name}: {block.relative:.3g}"))
        for j, drift in enumerate(own[block.name]):
            change = "nothing changed" if drift.relative == 0 else f"{drift.relative:.3g}"
            dot = i + (j + 1) / (len(own[block.name]) + 1), drift.relative, f"{drift.target}: {change}"
            dots[kind_of(drift.target), drift.axes < 2].append(dot)

    with style():
        figure, (axes,) = new_figure(WIDTH, HEIGHT, margins=MARGINS)
        height_of = set_axes(axes, [y for points in (bars, *dots.values()) for _, y, _ in points], len(blocks))
        for i, block in enumerate(blocks):
            if i % 2 == 0:
                axes.axvspan(i, i + 1, color=SHADE, linewidth=0)
            axes.annotate(block.name.replace(" ", "\n", 1), (i + 0.5, 0), (0, -8), color=MUTED, **BELOW)
            axes.annotate(ratio(block.relative), (i + 0.5, 0), (0, -42), weight="bold", **BELOW)
        for key, points in dots.items():
            draw(axes, points, height_of, **dot_style(*key))
        draw(axes, bars, height_of, **BAR, markersize=0.9 * (WIDTH - 72) / len(blocks))
        add_legend(axes, {kind for kind, _ in dots})
        tooltips = {dot_style(*key)["gid"]: [text for _, _, text in points] for key, points in dots.items()}
        return to_svg(figure, name, tooltips | {"blocks": [text for _, _, text in bars]})


def set_axes(axes: Axes, relatives: Sequence[float], blocks: int) -> Callable[[float], float]:
    """A logarithmic axis between a row for no change and one for a change without a ratio; -> the place of a change."""
    ratios = [value for value in relatives if 0 < value < math.inf] or [1.0]
    low, high = padded(min(ratios), max(ratios), log_scale=True)
    scale(axes, "y", low, high, log_scale=True)
    ticks = [*axes.get_yticks()] if ratios != [1.0] else []
    row = (high / low) ** ROW
    same, none = low / row, high * row
    axes.set_yticks([*ticks, same, none], [*labels(ticks), "same", "no ratio"])
    axes.set(xlim=(0, blocks), ylim=(same / row, none * row), xticks=[])
    axes.annotate("relative change", (0, 1), (-60, 44), "axes fraction", "offset points", color=MUTED)
    return lambda value: value if 0 < value < math.inf else same if value == 0 else none


def draw(
    axes: Axes, points: Sequence[tuple[float, float, str]], height_of: Callable[[float], float], **look: Any
) -> None:
    """Points of one look."""
    axes.plot([x for x, _, _ in points], [height_of(y) for _, y, _ in points], linestyle="", **look)


def dot_style(kind: str, hollow: bool) -> dict[str, Any]:
    """One colour for each kind of layer."""
    colour = COLOURS[KIND_NAMES.index(kind)]
    face = {"markerfacecolor": "none", "markeredgewidth": 1, "alpha": 0.6} if hollow else {"alpha": 0.75}
    return {"marker": "o", "markersize": 5.5, "color": colour, "gid": f"{kind} {hollow}", **face}


def add_legend(axes: Axes, kinds: set[str]) -> None:
    """The colours, then the shapes."""
    from matplotlib.lines import Line2D

    looks = {kind: dot_style(kind, hollow=False) for kind in KIND_NAMES if kind in kinds}
    looks["bias, norm"] = dot_style("other", hollow=True) | {"color": INK}
    looks["matrices and kernels of the block"] = BAR | {"markersize": 18}
    legend(axes, [Line2D([], [], linestyle="", label=name, **look) for name, look in looks.items()], columns=5)
