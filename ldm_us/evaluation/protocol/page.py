"""What a protocol leaves in its folder: tables, plots, and report.html, one file that loads nothing.

Before the figures stands what a reader must know to quote one; every number in it is computed from the results.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm_us.data.opening import open_image
from ldm_us.display.pages import render
from ldm_us.evaluation.protocol.arms import Arm, manifest_settings, read_generated
from ldm_us.evaluation.protocol.classifier import ClassifierConfig
from ldm_us.evaluation.protocol.configuration import ProtocolConfig, as_json
from ldm_us.evaluation.protocol.plots import draw_auc_by_ratio, draw_roc
from ldm_us.evaluation.protocol.splits import OWN, Split
from ldm_us.evaluation.protocol.stages import read_done
from ldm_us.evaluation.protocol.tables import (
    HEADER,
    METHOD,
    Results,
    Row,
    cells,
    make_rows,
    tests_of,
    title_of,
    to_csv,
    to_markdown,
)
from ldm_us.files.atomic import write_text
from ldm_us.files.pictures import labelled_grid

FEW = 10  # families of a class, below which an interval is a rough one
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


def cautions(rows: Sequence[Row], own: str) -> list[str]:
    """What tables cannot say: how wide intervals are, and what they leave out. `own`: the small generator's images."""
    said = []
    for row in rows:
        if row.seed is None and row.arm.name == row.arm.reference:
            said.append(
                f"On the {len(row.test.labels)} images of {row.test.name!r} the 95 percent interval of the AUC of "
                f"{row.arm.name!r} is {row.auc.high - row.auc.low:.2f} wide."
            )
    for test in tests_of(rows):
        if test.families.fewest < FEW:
            fewest = test.families.fewest
            said.append(f"A class of {test.name!r} has {fewest} families alone: its intervals are rough ones.")
    compared = [row.difference for row in rows if row.seed is None and row.difference is not None]
    if compared:
        unclear = sum(one.low <= 0 <= one.high for one in compared)
        said.append(
            f"{unclear} of {len(compared)} differences have an interval that holds 0: of those, these images cannot "
            "tell whether the arms differ. No correction is made for comparing several arms."
        )
    several = len({row.seed for row in rows if row.seed is not None}) > 1
    chance = "the test images and in the seeds of the classifiers" if several else "the test images alone (one seed)"
    said.append(
        f"One split, one generator: the intervals hold the chance in {chance}, not in which images were held out, nor "
        "in the training and sampling of the generator."
    )
    said.append(
        "The images that choose a classifier's epoch are split off from what the generator was trained on, or are its "
        "own: arms with generated images may have seen near-copies of them. The test images are never among them."
    )
    if any(row.test.name == own for row in rows):
        said.append(
            f"The test set {own!r} is what the small generator was trained on, as in the paper's 94 percent: a "
            "generator that repeats its training images passes it. The images that it never saw stand beside it."
        )
    return said


def say_passes(arms: Sequence[Arm], seeds: Sequence[int], results: Results, config: ClassifierConfig) -> str:
    """How often each arm passes over the real images that it is trained on, the mean of the seeds."""
    passes = []
    for arm in arms:
        if arm.real:
            taken = [results[arm.name, seed] for seed in seeds]
            each = [one["steps"] * config.batch / sum(one["trained_on"].values()) for one in taken]
            passes.append(f"{arm.name!r} {sum(each) / len(each):.0f}")
    steps = (
        "Every arm takes as many steps as the real one (equal_steps), so that generated images take the place of "
        "passes over real ones"
        if config.equal_steps
        else "Every arm takes as many steps as its own images ask for (equal_steps is off), so that more images are "
        "more training too"
    )
    return f"{steps}. Passes over each real image: {', '.join(passes)}."
