"""Two pictures of the results: AUC against the share of generated images, and ROC curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm_us.display.charts import (
    COLOURS,
    DPI,
    GRID,
    MUTED,
    TITLE_SIZE,
    Margins,
    legend,
    new_figure,
    padded,
    scale,
    style,
    to_picture,
    write,
)
from ldm_us.evaluation.auc import Floats
from ldm_us.evaluation.protocol.arms import REAL, Arm
from ldm_us.evaluation.protocol.tables import SUSPECT, Results, Row, Tested, probabilities_of, tests_of
from ldm_us.evaluation.protocol.units import Result
from ldm_us.files.pictures import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SIDE = 400  # pixels of a panel, which are drawn twice as large for print
AROUND = Margins(left=64, right=16, top=64, bottom=52)


def draw_auc_by_ratio(arms: Sequence[Arm], rows: Sequence[Row], path: Path) -> None:
    """A panel for each test set: the mean AUC with its interval against generated images per real one; dots: seeds."""
    main = [arm for arm in arms if arm.reference == REAL]
    lines = {
        "real + generated": [arm for arm in main if arm.real],
        "generated alone": [arm for arm in main if not arm.real],
    }
    with new_panels(tests_of([row for row in rows if row.arm in main]), path) as panels:
        for panel, test in panels:
            of_test = [row for row in rows if row.test is test]
            real = next(row for row in of_test if row.arm.name == REAL and row.seed is None)
            panel.axhline(real.auc.value, color=MUTED, lw=1, ls=":", zorder=0)
            drawn = [draw_arms(panel, arms, of_test, i, name) for i, (name, arms) in enumerate(lines.items()) if arms]
            legend(panel, drawn, len(drawn))
            write(panel, (0, 32), f"{test.name}: {len(test.labels)} images", TITLE_SIZE)
            panel.set(xlabel="generated images per real training image", ylabel="AUC")
            scale(panel, "x", *padded(0, max(arm.ratio or 0.0 for arm in main) or 1.0))
            scale(panel, "y", *panel.get_ylim(), most=6)


def draw_arms(panel: Axes, arms: Sequence[Arm], rows: Sequence[Row], i: int, name: str) -> Line2D:
    """A line of arms, the mean of their seeds with its interval, and a small dot for each seed."""
    mean = {row.arm.name: row for row in rows if row.seed is None}
    span = max(arm.ratio or 0.0 for arm in arms) or 1.0
    ratios = np.array([arm.ratio or 0.0 for arm in arms]) + 0.03 * i * span  # beside, not on each other
    auc = np.array([mean[arm.name].auc for arm in arms])  # (arms, 3): value, low, high
    panel.vlines(ratios, auc[:, 1], auc[:, 2], color=COLOURS[i], lw=1.5)
    for place, arm in zip(ratios, arms, strict=True):
        single = [row.auc.value for row in rows if row.arm == arm and row.seed is not None]
        panel.plot([place + 0.015 * span] * len(single), single, ".", color=COLOURS[i], alpha=0.7, ms=5)
    return panel.plot(ratios, auc[:, 0], color=COLOURS[i], marker="os"[i], ms=6, label=name)[0]


def draw_roc(arms: Sequence[Arm], rows: Sequence[Row], seeds: Sequence[int], results: Results, path: Path) -> None:
    """A panel for each test set: ROC of malignant against the rest, for every arm the mean of its seeds."""
    tests = [test for test in tests_of(rows) if SUSPECT in test.present]
    if not tests:
        return
    with new_panels(tests, path) as panels:
        for panel, test in panels:
            panel.plot([0, 1], [0, 1], color=GRID, lw=1, zorder=0)
            for i, arm in enumerate(arms):  # an arm has one colour in all panels
                if test.name not in arm.tests:
                    continue
                false, true = mean_roc(test, [results[arm.name, seed] for seed in seeds])
                dashes = ("-", "--", "-.")[i // len(COLOURS) % 3]
                panel.plot(false, true, color=COLOURS[i % len(COLOURS)], ls=dashes, lw=1.8, label=arm.name)
            write(panel, (0, 12), test.name, TITLE_SIZE)
            panel.set(xlabel="1 - specificity (malignant against the rest)", ylabel="sensitivity")
            for axis in ("x", "y"):
                scale(panel, axis, -0.01, 1.01, most=6)
            panel.legend(loc="lower right", borderaxespad=1, frameon=True, framealpha=0.85, edgecolor="none")


def mean_roc(test: Tested, results: Sequence[Result]) -> tuple[Floats, Floats]:
    """Sensitivity against 1 - specificity, the mean of the seeds at each specificity."""
    from sklearn.metrics import roc_curve

    k = test.classes.index(SUSPECT)
    at: Floats = np.linspace(0, 1, 201)
    curves = []
    for result in results:
        false, true, _ = roc_curve(test.labels == k, probabilities_of(result, test.name)[:, k])
        curves.append(np.interp(at, false, true))
    mean: Floats = np.mean(curves, axis=0)
    mean[0] = 0.0
    return at, mean


@contextmanager
def new_panels(tests: Sequence[Tested], path: Path) -> Iterator[Iterator[tuple[Axes, Tested]]]:
    """Square panels beside each other, one for each test set; written as PNG, with pixels enough to be printed."""
    count = len(tests)
    with style():
        figure, panels = new_figure(SIDE, SIDE, count, 2 if count == 4 else min(count, 3), margins=AROUND)
        for panel in panels:
            panel.grid(visible=True, axis="both")
            panel.spines["left"].set_visible(True)
        yield zip(panels, tests, strict=True)
        figure.set_dpi(2 * DPI)
        save_png(to_picture(figure), path)
