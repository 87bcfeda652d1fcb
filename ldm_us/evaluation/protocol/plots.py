"""Two pictures of the results: AUC against the share of generated images, and ROC curves. Drawn with matplotlib."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_us.display.axes import COLOURS
from ldm_us.evaluation.auc import Floats
from ldm_us.evaluation.protocol.arms import REAL, Arm
from ldm_us.evaluation.protocol.tables import SUSPECT, Results, Row, probabilities_of, read_tested
from ldm_us.files.atomic import atomic_file
from ldm_us.runtime.checks import check_extra

INK, MUTED, GRID = "#1d2125", "#59626b", "#dde1e5"
WIDTH, HEIGHT, DPI = 4.6, 3.7, 150  # of a panel, inches


def draw_auc_by_ratio(arms: Sequence[Arm], rows: Sequence[Row], path: Path) -> None:
    """A panel for each test set: the mean AUC with its interval against generated images per real one; dots: seeds."""
    main = [arm for arm in arms if arm.reference == REAL]
    tests = list(dict.fromkeys(test for arm in main for test in arm.tests))
    span = max(arm.ratio or 0.0 for arm in main) or 1.0
    figure, panels = new_panels(len(tests))
    for panel, test in zip(panels, tests, strict=True):
        mean = {row.arm: row for row in rows if row.test == test and row.seed is None}
        lines = {
            "real + generated": [arm for arm in main if arm.real],
            "generated alone": [arm for arm in main if not arm.real],
        }
        for i, (name, members) in enumerate(lines.items()):
            if not members:
                continue
            x = np.array([arm.ratio or 0.0 for arm in members]) + 0.04 * i * span  # beside, not on each other
            auc = np.array([mean[arm.name].auc for arm in members])  # (arms, 3): value, low, high
            around = np.abs(auc[:, 1:].T - auc[:, 0])
            marker = "os"[i]
            panel.errorbar(x, auc[:, 0], around, color=COLOURS[i], marker=marker, ms=6, lw=1.8, capsize=3, label=name)
            for place, arm in zip(x, members, strict=True):
                single = [
                    row.auc.value for row in rows if (row.test, row.arm) == (test, arm.name) and row.seed is not None
                ]
                panel.plot([place + 0.02 * span] * len(single), single, ".", color=COLOURS[i], alpha=0.7, ms=5)
        panel.axhline(mean[REAL].auc.value, color=MUTED, lw=1, ls=":", zorder=0)
        panel.set_xlabel("generated images per real training image")
        panel.set_ylabel("AUC")
        panel.set_title(f"{test}: {mean[REAL].images} images", loc="left")
    panels[0].legend(frameon=False, loc="best")
    save(figure, path)


def draw_roc(arms: Sequence[Arm], seeds: Sequence[int], results: Results, path: Path) -> None:
    """A panel for each test set: ROC of malignant against the rest, for every arm the mean of its seeds."""
    tests = [
        test
        for test in dict.fromkeys(test for arm in arms for test in arm.tests)
        if SUSPECT in read_tested(test, [results[arm.name, seeds[0]] for arm in arms if test in arm.tests]).present
    ]
    if not tests:
        return
    figure, panels = new_panels(len(tests))
    for panel, test in zip(panels, tests, strict=True):
        panel.plot([0, 1], [0, 1], color=GRID, lw=1, zorder=0)
        shown = [arm for arm in arms if test in arm.tests]
        for i, arm in enumerate(shown):
            false, true = mean_roc(test, [results[arm.name, seed] for seed in seeds])
            style = ("-", "--", "-.")[i // len(COLOURS) % 3]
            panel.plot(false, true, color=COLOURS[i % len(COLOURS)], ls=style, lw=1.8, label=arm.name)
        panel.set_xlabel("1 - specificity (malignant against the rest)")
        panel.set_ylabel("sensitivity")
        panel.set_title(test, loc="left")
        panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        panel.legend(frameon=False, loc="lower right", fontsize=8)
    save(figure, path)


def mean_roc(test: str, results: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
    """Sensitivity against 1 - specificity, the mean of the seeds at each specificity."""
    from sklearn.metrics import roc_curve

    tested = read_tested(test, [dict(result) for result in results])
    k = tested.classes.index(SUSPECT)
    at: Floats = np.linspace(0, 1, 201)
    curves = []
    for result in results:
        false, true, _ = roc_curve(tested.labels == k, probabilities_of(dict(result), test)[:, k])
        curves.append(np.interp(at, false, true))
    mean: Floats = np.mean(curves, axis=0)
    mean[0] = 0.0
    return at, mean


def new_panels(count: int) -> tuple[Any, list[Any]]:
    """A figure with panels beside each other. Raise ValueError, naming the extra, without matplotlib."""
    check_extra("eval", "matplotlib")
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[:count]:
        panel.grid(color=GRID, lw=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(colors=MUTED, labelsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(MUTED)
        panel.title.set(color=INK, fontsize=11)
    return figure, panels[:count]


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    with atomic_file(path) as out:
        out.write(file.getvalue())
