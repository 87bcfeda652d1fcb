"""What a protocol leaves in its folder: tables, plots, and report.html, one file that loads nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm_us.data.records import open_image
from ldm_us.display.pages import render
from ldm_us.evaluation.protocol.arms import Arm, manifest_settings, read_generated
from ldm_us.evaluation.protocol.cautions import cautions, say_passes
from ldm_us.evaluation.protocol.configuration import ProtocolConfig, as_json
from ldm_us.evaluation.protocol.plots import draw_auc_by_ratio, draw_roc
from ldm_us.evaluation.protocol.splits import OWN, Split
from ldm_us.evaluation.protocol.stages import read_done
from ldm_us.evaluation.protocol.tables import (
    HEADER,
    METHOD,
    Results,
    cells,
    make_rows,
    tests_of,
    title_of,
    to_csv,
    to_markdown,
)
from ldm_us.files.atomic import write_text
from ldm_us.files.pictures import labelled_grid

SHOWN = 8  # samples of a class
CAPTIONS = {
    "auc_by_ratio.png": "AUC against generated images per real training image. Bars: 95 percent intervals; small dots: "
    "single seeds; dotted: real images alone.",
    "roc.png": "ROC curves of malignant against the rest, the mean of all seeds.",
}


def write_report(config: ProtocolConfig, out: Path, split: Split, arms: Sequence[Arm], results: Results) -> None:
    """Write tables, plots and the page, which is in ASCII."""
    rows = make_rows(arms, config.seeds, results, config.resamples)
    said = [*cautions(rows, OWN), say_passes(arms, config.seeds, results, config.classifier)]
    draw_auc_by_ratio(arms, rows, out / "auc_by_ratio.png")
    draw_roc(arms, rows, config.seeds, results, out / "roc.png")
    drawn = [out / name for name in ("generated", "generated_small") if (out / name).is_dir()]
    page = render(
        "ldm_us/evaluation/protocol/page.html",
        title="Classifiers on real and generated ultrasound images",
        cautions=said,
        notes=split.notes,
        header=HEADER,
        tables=[(title_of(test), cells(rows, test)) for test in tests_of(rows)],
        method=METHOD,
        plots=[(open_image(out / name), caption) for name, caption in CAPTIONS.items() if (out / name).is_file()],
        samples=[(folder.name, first_samples(folder), manifest_settings(folder)) for folder in drawn],
        classifiers=classifier_lines(results),
        starts="; ".join(dict.fromkeys(result["start"] for result in results.values())),
        stages=[(name, " ".join(made["command"]), made["sha256"][:16]) for name, made in read_done(out).items()],
        digests=[(name, digest[:16]) for name, digest in split.digests.items()],
        configuration=[(name, json.dumps(value)) for name, value in as_json(config).items()],
    )
    texts = {"results.csv": to_csv(rows), "results.md": to_markdown(rows, said), "report.html": page}
    for name, text in texts.items():
        write_text(out / name, text)


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
