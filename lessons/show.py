"""What lessons share: phantoms to work on; images in rows, curves, tables and code to look at."""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ldm_us.data.phantom.simulate import simulate
from ldm_us.display.charts import COLOURS, GRID, INK, MUTED

torch.set_num_threads(1)  # as sample.py: sums that are split among threads round differently
LOOK = {"color": INK, "fontsize": 10}


def phantoms(seed: int, count: int, label: str = "benign", rescan: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 128, 128) in [-1, 1] of as many simulated breasts, and their lesion masks (n, 1, 128, 128)."""
    made = [simulate(seed, number, label, size=128, rescan=rescan) for number in range(count)]
    grey = torch.from_numpy(np.stack([phantom.image for phantom in made])).float()[:, None] / 127.5 - 1
    masks = [np.any([np.zeros((128, 128)), *phantom.masks], axis=0) for phantom in made]
    return grey.expand(-1, 3, -1, -1), torch.from_numpy(np.stack(masks)).float()[:, None]


def images(rows: Sequence[Tensor], titles: Sequence[str] = (), names: Sequence[str] = ()) -> Figure:
    """Rows of images (n, c, H, W) or (n, H, W) in [0, 1]: a title above each column, a name left of each row."""
    rows = [row.mean(dim=1) if row.dim() == 4 else row for row in rows]
    columns = max(len(row) for row in rows)
    side = min(9.2 / columns, 2.6)
    figure = Figure(figsize=(side * columns, side * len(rows) + 0.35), layout="constrained")
    for i, panel in enumerate(figure.subplots(len(rows), columns, squeeze=False).flat):
        row, column = rows[i // columns], i % columns
        panel.axis("off")
        if column < len(row):
            panel.imshow(row[column].detach().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if i < columns and column < len(titles):
            panel.set_title(titles[column], **LOOK)
        if column == 0 and i // columns < len(names):
            panel.text(-0.06, 0.5, names[i // columns], rotation=90, va="center", ha="right", transform=panel.transAxes)
    return figure


def curves(lines: Mapping[str, tuple[Any, Any]], x: str, y: str, log: bool = False) -> Figure:
    """Lines (x values, y values) by name, with dots where they have few points; x and y name the axes."""
    figure = Figure(figsize=(7.0, 3.1), layout="constrained")
    panel = figure.subplots()
    for colour, (name, (across, up)) in zip(COLOURS, lines.items(), strict=False):
        panel.plot(
            np.asarray(across),
            np.asarray(up),
            color=colour,
            label=name,
            linewidth=2,
            marker="o" if len(across) < 25 else "",
        )
    panel.set_xlabel(x, **LOOK)
    panel.set_ylabel(y, **LOOK)
    panel.set_yscale("log" if log else "linear")
    panel.grid(color=GRID)
    panel.set_axisbelow(True)
    panel.tick_params(which="both", colors=MUTED, labelsize=9)
    for spine in panel.spines.values():
        spine.set_visible(False)
    if len(lines) > 1:
        panel.legend(frameon=False, fontsize=10)
    return figure


def boxes(shapes: Sequence[tuple[str, int, int]]) -> Figure:
    """Boxes (kind, channels, side of the map) from left to right: as high as the map, the channels above."""
    kinds = dict(zip(dict.fromkeys(kind for kind, _, _ in shapes), COLOURS, strict=False))
    figure = Figure(figsize=(9.2, 2.9), layout="constrained")
    panel = figure.subplots()
    for i, (kind, channels, side) in enumerate(shapes):
        panel.bar(i, side, 0.8, -side / 2, color=kinds[kind])
        panel.text(i, side / 2 + 0.8, str(channels), ha="center", **LOOK)
        panel.text(i, -side / 2 - 0.8, f"{side}", ha="center", va="top", color=MUTED, fontsize=9)
    for kind, colour in kinds.items():
        panel.bar(0, 0, color=colour, label=kind)
    panel.set_ylim(-max(side for *_, side in shapes) / 2 - 5, max(side for *_, side in shapes) / 2 + 5)
    panel.axis("off")
    figure.legend(loc="outside upper center", ncols=len(kinds), frameon=False, fontsize=10)
    return figure


def contrast(z: Tensor) -> Tensor:
    """Values of any size (n, h, w), each image stretched to [0, 1], to be looked at."""
    low, high = z.amin(dim=(-2, -1), keepdim=True), z.amax(dim=(-2, -1), keepdim=True)
    return (z - low) / (high - low).clamp(min=1e-9)


def table(head: Sequence[str], rows: Mapping[str, Sequence[Any]], form: str = ".2f") -> str:
    """A Markdown table: a name and numbers a row."""
    lines = [f"| {name} | {' | '.join(format(value, form) for value in row)} |" for name, row in rows.items()]
    return "\n".join([f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", *lines])


def source(thing: Callable[..., Any]) -> str:
    """The code of a function of the library as Markdown: what is read here is what runs."""
    return f"```python\n{textwrap.dedent(inspect.getsource(thing))}```"
