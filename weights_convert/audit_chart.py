"""The picture of a drift: every tensor's relative change, block by block in the order of the network, as inline SVG."""

import math
from collections.abc import Sequence
from html import escape

from ldm_us.display.axes import Axes, Series, fit_axes, labels
from weights_convert.blocks import KIND_NAMES, block_of, kind_of
from weights_convert.drift import Drift, GroupDrift, by_block

WIDTH, HEIGHT = 860, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 44, 58  # margins
LETTER = 5.9  # width of a letter, about
EDGE = 13  # from the box to what has no place on a logarithmic axis: 0 below; above, a change of what was 0, and NaN


def drift_chart(drifts: Sequence[Drift], name: str) -> str:
    """Draw the tensors of one part as dots, and each block as a bar: see GroupDrift."""
    blocks = by_block(drifts)
    own = {block.name: [d for d in drifts if block_of(d.target)[1] == block.name] for block in blocks}
    points = [(0.0, value) for value in (*(d.relative for d in drifts), *(block.relative for block in blocks))]
    box = (LEFT, TOP + 2 * EDGE, WIDTH - RIGHT, HEIGHT - BOTTOM - 2 * EDGE)
    axes = fit_axes([Series(name, points)], box, log_scale=True)
    parts = [
        f'<svg class="chart drift" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">',
        '<text class="axis-label" x="0" y="13">relative change</text>',
        legend({kind_of(drift.target) for drift in drifts}),
    ]
    if axes is not None:
        parts.append(grid(axes))
    width = (WIDTH - RIGHT - LEFT) / len(blocks)
    for i, block in enumerate(blocks):
        parts.append(column(block, own[block.name], axes, LEFT + i * width, width, shaded=i % 2 == 0))
    return "".join(parts) + "</svg>"


def legend(kinds: set[str]) -> str:
    """A dot and a name for each kind of layer, then the two shapes."""
    parts, x = [], 0.0
    for i, kind in enumerate(KIND_NAMES):
        if kind in kinds:
            parts.append(f'<circle cx="{x + 5:.1f}" cy="29" r="4" style="fill:var(--c{i})"/>')
            parts.append(f'<text x="{x + 14:.1f}" y="33">{kind}</text>')
            x += 14 + LETTER * len(kind) + 15
    parts.append(f'<circle class="hollow" cx="{x + 5:.1f}" cy="29" r="3.5" style="stroke:currentColor"/>')
    parts.append(f'<text x="{x + 14:.1f}" y="33">bias, norm</text>')
    x += 14 + LETTER * 10 + 15
    parts.append(f'<line class="block" x1="{x:.1f}" y1="29" x2="{x + 20:.1f}" y2="29"/>')
    parts.append(f'<text x="{x + 26:.1f}" y="33">matrices and kernels of the block</text>')
    return "".join(parts)


def grid(axes: Axes) -> str:
    """Lines and numbers of the logarithmic axis, and the names of the rows outside of it."""
    parts, ticks = [], axes.y_ticks()
    for tick, label in zip(ticks, labels(ticks), strict=True):
        placed = axes.place((0.0, tick))
        if placed is not None:
            y = placed[1]
            parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for y, words in ((TOP + EDGE, "no ratio"), (HEIGHT - BOTTOM - EDGE, "same")):
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{words}</text>')
    return "".join(parts)


def column(block: GroupDrift, drifts: Sequence[Drift], axes: Axes | None, x: float, width: float, shaded: bool) -> str:
    """One block: its ground, dots, line and name."""
    parts = []
    if shaded:
        height = HEIGHT - BOTTOM - TOP
        parts.append(f'<rect class="ground" x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{height}"/>')
    for j, drift in enumerate(drifts):
        parts.append(dot(drift, axes, x + width * (j + 1) / (len(drifts) + 1)))
    y = height_of(block.relative, axes)
    tooltip = f"<title>{escape(block.name)}: {block.relative:.3g}</title>"
    parts.append(f'<line class="block" x1="{x + 2:.1f}" y1="{y:.1f}" x2="{x + width - 2:.1f}" y2="{y:.1f}">')
    parts.append(f"{tooltip}</line>")
    middle = x + width / 2
    lines = [block.name] if LETTER * len(block.name) < width else block.name.split(" ", 1)
    for line, word in enumerate(lines):
        y = HEIGHT - BOTTOM + 16 + 14 * line
        parts.append(f'<text x="{middle:.1f}" y="{y}" text-anchor="middle">{escape(word)}</text>')
    value = "from 0" if math.isinf(block.relative) else f"{block.relative:.2g}"
    parts.append(f'<text class="value" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{value}</text>')
    return "".join(parts)


def dot(drift: Drift, axes: Axes | None, x: float) -> str:
    """One tensor, with its name and change as a tooltip; hollow for a vector."""
    kind = KIND_NAMES.index(kind_of(drift.target))
    hollow = drift.axes < 2
    style = f"stroke:var(--c{kind})" if hollow else f"fill:var(--c{kind})"
    change = "nothing changed" if drift.relative == 0 else f"{drift.relative:.3g}"
    tooltip = f"<title>{escape(drift.target)}: {change}</title>"
    shape, radius = ("hollow", 2.5) if hollow else ("full", 3)
    place = f'cx="{x:.1f}" cy="{height_of(drift.relative, axes):.1f}" r="{radius}"'
    return f'<circle class="{shape}" {place} style="{style}">{tooltip}</circle>'


def height_of(relative: float, axes: Axes | None) -> float:
    """The y of a relative change, with rows of their own for 0 and for infinity, or no number."""
    placed = axes.place((0.0, relative)) if axes is not None else None
    if placed is not None:
        return placed[1]
    return HEIGHT - BOTTOM - EDGE if relative == 0 else TOP + EDGE
