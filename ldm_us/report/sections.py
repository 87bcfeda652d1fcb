"""The sections of a report: the summary of all runs, and for each run its origin, curves and pictures."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import ldm_us
from ldm_us.data.records import open_image
from ldm_us.report.curves import curves
from ldm_us.report.figures import Figure
from ldm_us.report.key_figures import key_figures
from ldm_us.report.page import LARGEST_GRID, chart, image, note, picture_grid, table
from ldm_us.report.run_folder import Run

BETWEEN = 4  # pictures shown between the first and the last
CAUTION = "Samples are synthetic: made by a generative model, not for diagnosis."
TAUGHT = {
    "vae": "the autoencoder, to write images as latents and back",
    "unet": "the denoiser, to make latents of ultrasound images from noise and a class prompt",
    "controlnet": "the ControlNet, to lead the frozen denoiser along a lesion mask",
}
GRIDS = {
    "vae": "Training images above, their reconstructions below: the same images in every picture.",
    "unet": "One row per class prompt. The seeds are the same in every picture, so what changes is the model.",
    "controlnet": "Left the mask, then samples that should follow it. Masks and seeds are the same in every picture: "
    "at step 0 a fresh ControlNet does nothing, and the samples ignore the mask.",
}


def heading(title: str) -> str:
    """The title of the page, and how to read it."""
    return (
        f'<h1>{escape(title)}</h1><p class="lead">What each run started from, what it was taught, and its key figures '
        "on held-out images before and after.</p>"
    )


def summary(runs: Sequence[Run]) -> str:
    """What was there before, what each run taught, and its key figures before and after."""
    groups = ""
    for number, run in enumerate(runs, 1):
        groups += (
            f'<tbody><tr><th class="run" scope="rowgroup" colspan="3"><a href="#run-{number}">{name_of(run)}</a>'
            f"<dl><dt>Pre-trained</dt><dd>{escape(pre_trained(run))}</dd>"
            f"<dt>Taught here</dt><dd>{escape(taught(run))}; {escape(effort(run))}</dd></dl></th></tr>"
        )
        for figure in key_figures(run.stage, run.lines):
            groups += (
                f"<tr><td>{escape(figure.name)}<small>{escape(figure.reading)}</small></td>"
                f"<td>{figure.before}<small>{figure.before_step}</small></td>"
                f'<td><span class="after">{figure.after}</span><small>{figure.after_step}</small></td></tr>'
            )
        groups += "</tbody>"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Key figure", "Before", "After"))
    return f'<div class="scroll"><table class="summary"><thead><tr>{head}</tr></thead>{groups}</table></div>'


def pre_trained(run: Run) -> str:
    """What the run found, in words."""
    return ("nothing: " if run.config.get("weights") is None else "") + ", then ".join(origin(run))


def name_of(run: Run) -> str:
    """The stage, and the name of the folder where that says more."""
    badge = f'<span class="stage">{run.stage}</span>'
    return badge if run.name == run.stage else f"{badge} {escape(run.name)}"


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


def run_section(number: int, run: Run, figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """Everything about one run."""
    steps = "".join(f"<li>{escape(step)}</li>" for step in origin(run))
    parts = [
        f'<section id="run-{number}"><h2>{name_of(run)}</h2>',
        f'<ol class="chain">{steps}<li class="this">{run.stage}, {count(run.steps)} steps</li></ol>',
        f"<p>This run taught {TAUGHT[run.stage]}. Trained: {escape(taught(run))}; {escape(effort(run))}. Everything "
        "else stayed as it was.</p>",
        *[note(text) for text in [*run.notes, *notes]],
        lineage(run),
        configuration(run),
        sample_history(run),
        '<h3>Curves</h3><div class="charts">',
        *[chart(curve) for curve in curves(run.stage, run.lines)],
        "</div>",
    ]
    if figures:
        caution = f'<p class="caution">{CAUTION}</p>' if any(figure.synthetic for figure in figures) else ""
        parts += ["<h3>What the result makes</h3>", caution, *[picture_grid(figure) for figure in figures]]
    return "\n".join([*parts, "</section>"])


def lineage(run: Run) -> str:
    """Every stage behind the result, with the hash of the file it started from."""
    entries = [*run.ancestors, *([run.result] if run.result is not None else [])]
    if not entries:
        return ""
    rows = [
        [
            str(entry.get("stage")),
            count(entry.get("steps")),
            count(entry.get("images_per_step")),
            f"{entry.get('learning_rate'):g}" if isinstance(entry.get("learning_rate"), float) else "",
            ", ".join(map(str, entry.get("data", []))),
            str(entry.get("parent_sha256", ""))[:12],
        ]
        for entry in entries
    ]
    header = ("Stage", "Steps", "Images a step", "Learning rate", "Data", "Started from (SHA-256)")
    marked = len(rows) - 1 if run.result is not None else None
    return f"<h3>Lineage</h3>{table(header, rows, marked)}"


def configuration(run: Run) -> str:
    """config.json, folded away."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><code>{escape(shown(value))}</code></td></tr>'
        for name, value in run.config.items()
    )
    return (
        f'<details><summary>Configuration of the run</summary><div class="scroll"><table class="configuration">'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def shown(value: Any) -> str:
    """A value of config.json: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def sample_history(run: Run) -> str:
    """The pictures of the training, first and last side by side, then some between."""
    pictures, problems = [], []
    for step, path in run.samples:
        try:
            pictures.append((step, open_image(path)))
        except ValueError as error:
            problems.append(note(str(error)))
    if not pictures:
        return "".join(problems)
    figures = []
    for step, picture in pictures:
        drawn = image(picture, f"{run.stage} {run.name}: picture at step {step}", LARGEST_GRID)
        figures.append(f"<figure><h4>Step {step:,}</h4>{drawn}</figure>")
    first_and_last = [figures[0]] if len(figures) == 1 else [figures[0], figures[-1]]
    between = figures[1:-1]
    every = max(1, -(-len(between) // BETWEEN))
    title = "Before and after" if len(figures) > 1 else "Pictures"
    more = f'<details><summary>The steps between</summary><div class="more">{"".join(between[::every])}</div></details>'
    caution = "" if run.stage == "vae" else f" {CAUTION}"
    return (
        f'<h3>{title}</h3>{"".join(problems)}<div class="pairs">{"".join(first_and_last)}</div>'
        f'<p class="muted">{GRIDS[run.stage]}{caution}</p>{more if between else ""}'
    )


def footer() -> str:
    """What made the page."""
    return f"<footer>Made by ldm_us {ldm_us.__version__}. {CAUTION}</footer>"
