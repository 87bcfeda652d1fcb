"""FOLDER/report.html: tables, plots, configuration and hashes of a protocol in one file that loads nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_us.data.records import open_image
from ldm_us.display.pages import render
from ldm_us.evaluation.protocol.arms import read_generated
from ldm_us.evaluation.protocol.tables import HEADER, METHOD, Results, Row, cells, title_of
from ldm_us.files.pictures import labelled_grid

SHOWN = 8  # samples of a class
CAPTIONS = {
    "auc_by_ratio.png": "AUC against generated images per real training image. Bars: 95 percent intervals; small dots: "
    "single seeds; dotted: real images alone.",
    "roc.png": "ROC curves of malignant against the rest, the mean of all seeds.",
}


@dataclass(frozen=True)
class Content:
    """Everything that the page shows."""

    out: Path
    rows: Sequence[Row]
    results: Results
    cautions: Sequence[str]
    notes: Sequence[str]
    configuration: Mapping[str, Any]
    digests: Mapping[str, str]
    stages: Mapping[str, Any]
    drawn: Mapping[str, Mapping[str, Any]]  # folder of samples -> how they were drawn


def make_page(content: Content) -> str:
    """The whole page, in ASCII."""
    tests = dict.fromkeys(row.test for row in content.rows)
    plots = {content.out / name: caption for name, caption in CAPTIONS.items()}
    return render(
        "ldm_us/evaluation/protocol/page.html",
        title="Classifiers on real and generated ultrasound images",
        cautions=content.cautions,
        notes=content.notes,
        header=HEADER,
        tables=[(title_of(content.rows, test), cells(content.rows, test)) for test in tests],
        method=METHOD,
        plots=[(open_image(path), caption) for path, caption in plots.items() if path.is_file()],
        samples=[(folder, first_samples(content.out / folder), how) for folder, how in content.drawn.items()],
        classifiers=classifier_lines(content.results),
        starts="; ".join(dict.fromkeys(result["start"] for result in content.results.values())),
        stages=[(name, " ".join(made["command"]), made["sha256"][:16]) for name, made in content.stages.items()],
        digests=[(name, digest[:16]) for name, digest in content.digests.items()],
        configuration=[(name, json.dumps(value)) for name, value in content.configuration.items()],
    )


def first_samples(folder: Path) -> Image.Image:
    """The first generated images of each class."""
    rows: dict[str, list[Image.Image]] = {}
    for record in read_generated(folder):
        row = rows.setdefault(record.label, [])
        if len(row) < SHOWN:
            row.append(open_image(record.image))
    labels = sorted(rows)
    return labelled_grid([rows[label] for label in labels], labels)


def classifier_lines(results: Results) -> list[list[str]]:
    """Every classifier: what it was trained on, which epoch was kept, and the hash of its file."""
    lines = []
    for (arm, seed), result in results.items():
        counted = ", ".join(f"{label} {n}" for label, n in result["trained_on"].items())
        kept = result["history"][result["best_epoch"] - 1]
        facts = [f"{result['best_epoch']} of {len(result['history'])}", f"{kept['accuracy']:.3f}"]
        lines.append([arm, str(seed), counted, f"{result['steps']:,}", *facts, result["model_sha256"][:16]])
    return lines
