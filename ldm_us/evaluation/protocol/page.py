"""FOLDER/report.html: tables, plots, configuration and hashes of a protocol in one file that loads nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

import ldm_us
from ldm_us.data.records import open_image
from ldm_us.evaluation.protocol.arms import read_generated
from ldm_us.evaluation.protocol.tables import HEADER, METHOD, Results, Row, cells, title_of
from ldm_us.files.pictures import labelled_grid
from ldm_us.report.page import document, image, note, table

TITLE = "Classifiers on real and generated ultrasound images"
LARGEST = 2100  # pixels of a plot
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
    lead = (
        '<p class="lead">A generator is trained on one part of the images, classifiers on real images, on generated '
        "ones and on both; all are tested on images that neither has seen. After arXiv 2502.08580, section 3.1.2.</p>"
    )
    parts = [f"<h1>{escape(TITLE)}</h1>", lead, cautions_box(content.cautions), *map(note, content.notes)]
    for test in dict.fromkeys(row.test for row in content.rows):
        parts.append(f"<h3>{escape(title_of(content.rows, test))}</h3>{table(HEADER, cells(content.rows, test))}")
    parts.append(f'<p class="muted">{escape(METHOD)}</p>')
    parts += [picture(content.out / name, caption) for name, caption in CAPTIONS.items()]
    parts += [samples(content.out / folder, content.drawn[folder]) for folder in content.drawn]
    parts += [classifiers(content), provenance(content), configuration(content.configuration)]
    parts.append(f"<footer>Made by ldm_us {ldm_us.__version__}. Generated images are not for diagnosis.</footer>")
    return document(TITLE, "\n".join(part for part in parts if part))


def cautions_box(sentences: Sequence[str]) -> str:
    """What to know before quoting a figure."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="caution"><b>Before quoting a figure</b><ul>{items}</ul></div>'


def picture(path: Path, caption: str) -> str:
    """A PNG inside the page; nothing where it was not made."""
    if not path.is_file():
        return ""
    drawn = image(open_image(path), caption, LARGEST)
    return f'<figure class="pictures">{drawn}<figcaption>{escape(caption)}</figcaption></figure>'


def samples(folder: Path, how: Mapping[str, Any]) -> str:
    """The first generated images of each class."""
    by_class: dict[str, list[Image.Image]] = {}
    for record in read_generated(folder):
        shown = by_class.setdefault(record.label, [])
        if len(shown) < SHOWN:
            shown.append(open_image(record.image))
    labels = sorted(by_class)
    drawn = image(labelled_grid([by_class[label] for label in labels], labels), f"samples of {folder.name}", LARGEST)
    said = ", ".join(f"{name} {value}" for name, value in how.items() if name != "weights_sha256")
    caption = f"The first samples of each class in {folder.name} ({said}). Synthetic: not for diagnosis."
    return f'<figure class="pictures">{drawn}<figcaption>{escape(caption)}</figcaption></figure>'


def classifiers(content: Content) -> str:
    """Every classifier: what it was trained on, which epoch was kept, and the hash of its file."""
    header = ("Arm", "Seed", "Trained on", "Steps", "Epoch kept", "Validation", "Weights (SHA-256)")
    lines = []
    for (arm, seed), result in content.results.items():
        counted = ", ".join(f"{label} {n}" for label, n in result["trained_on"].items())
        kept = result["history"][result["best_epoch"] - 1]
        facts = [f"{result['best_epoch']} of {len(result['history'])}", f"{kept['accuracy']:.3f}"]
        lines.append([arm, str(seed), counted, f"{result['steps']:,}", *facts, result["model_sha256"][:16]])
    starts = "; ".join(dict.fromkeys(result["start"] for result in content.results.values()))
    return (
        f"<h3>Classifiers</h3><p>Started from {escape(starts)}. Validation: accuracy of the epoch kept, on images "
        f"split off from what the arm trains on.</p><details><summary>All {len(lines)} classifiers</summary>"
        f"{table(header, lines)}</details>"
    )


def provenance(content: Content) -> str:
    """Commands of the generator, hashes of what they made, how samples were drawn, hashes of the data."""
    stages = [[name, " ".join(stage["command"]), stage["sha256"][:16]] for name, stage in content.stages.items()]
    data = [[name, digest[:16]] for name, digest in content.digests.items()]
    return (
        f"<h3>Generator</h3>{table(('Stage', 'Command', 'Result (SHA-256)'), stages)}"
        f"<h3>Data</h3>{table(('Part', 'Images and masks (SHA-256)'), data)}"
    )


def configuration(values: Mapping[str, Any]) -> str:
    """The configuration with every default filled in, folded away."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(json.dumps(value))}</code></td></tr>'
        for name, value in values.items()
    )
    return (
        f'<details><summary>Configuration</summary><div class="scroll"><table class="configuration"><tbody>{rows}'
        "</tbody></table></div></details>"
    )
