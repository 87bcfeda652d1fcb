"""What a report says about a run, for the template page.html: origin, what was taught, lineage, curves and pictures."""

import json
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ldm_us.data.records import open_image
from ldm_us.report.curves import curves
from ldm_us.report.figures import Figure
from ldm_us.report.key_figures import key_figures
from ldm_us.report.run_folder import Run

BETWEEN = 4  # pictures shown between the first and the last

Moment = tuple[int, Image.Image]  # a step of the training, and its picture


def section_of(run: Run, figures: Sequence[Figure], notes: Sequence[str]) -> dict[str, object]:
    """All that the page shows of a run, under the names that it has in the template."""
    pictures, damaged = read_pictures(run)
    between = pictures[1:-1]
    return {
        "run": run,
        "figures": figures,  # made with the result
        "notes": [*run.notes, *notes],
        "origin": origin(run),
        "taught": taught(run),
        "effort": effort(run),
        "key_figures": key_figures(run.stage, run.lines),
        "lineage": [lineage_row(entry) for entry in (*run.ancestors, run.result) if entry is not None],
        "configuration": [
            (k, value if isinstance(value, str) else json.dumps(value)) for k, value in run.config.items()
        ],
        "damaged": damaged,
        "pictures": [*pictures[:1], *pictures[1:][-1:]],  # the first and the last of the training
        "between": between[:: math.ceil(len(between) / BETWEEN) or 1],
        "curves": curves(run.name, run.lines),
    }


def origin(run: Run) -> list[str]:
    """What stood before the run, oldest first."""
    if run.config.get("weights") is None:
        return [f"random weights ({run.config.get('preset')})"]
    if not run.ancestors:
        return [f"weights of {str(run.config['weights']).rsplit('/', 1)[-1]}"]
    parent = str(run.ancestors[0].get("parent_sha256", ""))
    first = "random weights" if parent == "random" else f"imported weights {parent[:12]}"
    return [first, *map(ancestor, run.ancestors)]


def ancestor(entry: dict[str, Any]) -> str:
    """One stage before the run; what it learned without words is said."""
    steps = f"{entry.get('stage')}, {count(entry.get('steps'))} steps"
    return f"{steps} without captions" if entry.get("caption_dropout") == 1 else steps


def taught(run: Run) -> str:
    """The trained parts, with their size where there is a result."""
    parts = " and ".join({"text": "text encoder"}.get(part, part) for part in run.trained_parts)
    if run.config.get("text_warmup"):
        parts += f" (after {run.config['text_warmup']} contrastive steps of the text encoder, before step 0)"
    trained = sum(run.sizes.get(part, 0) for part in run.trained_parts)
    if trained == 0:
        return parts
    return f"{parts}: {trained:,} of {sum(run.sizes.values()):,} parameters"


def effort(run: Run) -> str:
    """Steps, images and data of the run."""
    folders = ", ".join(str(folder).rstrip("/").rsplit("/", 1)[-1] for folder in run.config.get("data", []))
    return f"{count(run.steps)} steps, {count(run.steps * run.images_per_step)} images seen, of {folders}"


def count(value: Any) -> str:
    """A number with commas; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def lineage_row(entry: dict[str, Any]) -> list[str]:
    """One stage behind the result, with the hash of the file it started from."""
    rate = entry.get("learning_rate")
    return [
        str(entry.get("stage")),
        count(entry.get("steps")),
        count(entry.get("images_per_step")),
        f"{rate:g}" if isinstance(rate, float) else "",
        ", ".join(map(str, entry.get("data", []))),
        str(entry.get("parent_sha256", ""))[:12],
    ]


def read_pictures(run: Run) -> tuple[list[Moment], list[str]]:
    """The pictures of the training, oldest first, and what is wrong with those that cannot be read."""
    pictures, damaged = [], []
    for step, path in run.samples:
        try:
            pictures.append((step, open_image(path)))
        except ValueError as error:
            damaged.append(str(error))
    return pictures, damaged
