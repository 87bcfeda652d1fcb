"""The first samples of a folder as one picture, like the paper's Figures 3 and 4, from the files that were written."""

from pathlib import Path

from PIL import Image

from ldm_us.data.records import Record, image_tensor, open_pair, shown_mask
from ldm_us.files.pictures import labelled_grid, to_picture
from ldm_us.synthesis.inputs import asked_mask
from ldm_us.synthesis.plan import Plan
from ldm_us.synthesis.recipe import Recipe
from ldm_us.synthesis.subjects import Subject

MOST_ROWS = 24  # the files hold every sample
COLUMNS = 8


def shown_subjects(plan: Plan) -> tuple[Subject, ...]:
    """The subjects that the grid has room for."""
    return plan.subjects[:MOST_ROWS]


def draw_grid(plan: Plan, out: Path, recipe: Recipe) -> Image.Image:
    """Rows of samples; with masks, the mask and its original first (Figure 4), else samples alone (Figure 3)."""
    subjects = shown_subjects(plan)
    rows = sample_rows(plan, out, len(subjects))
    names = [subject.name for subject in subjects]
    if not plan.masked:
        return labelled_grid(rows, names)
    originals = [load_original(subject, recipe) for subject in subjects]
    with_original = any(original is not None for original in originals)
    for subject, original, row in zip(subjects, originals, rows, strict=True):
        row[:0] = [
            to_picture(shown_mask(asked_mask(subject, recipe), plan.hint)),
            *([original] if with_original else []),
        ]
    before = 2 if with_original else 1
    columns = ["mask", *(["original"] if with_original else []), *["sample"] * (max(map(len, rows)) - before)]
    return labelled_grid(rows, names, columns)


def sample_rows(plan: Plan, out: Path, count: int) -> list[list[Image.Image | None]]:
    """The first COLUMNS samples of the first `count` subjects."""
    rows: list[list[Image.Image | None]] = [[] for _ in range(count)]
    room = count * COLUMNS
    for sample in plan:
        if sample.row < count and len(rows[sample.row]) < COLUMNS:
            with Image.open(out / sample.file_name) as picture:
                rows[sample.row].append(picture.copy())
            room -= 1
        if room == 0:
            break
    return rows


def load_original(subject: Subject, recipe: Recipe) -> Image.Image | None:
    """The image a mask was drawn on, for the grid; its size must be that of the mask."""
    if subject.original is None:
        return None
    record = Record(subject.original, subject.masks, subject.name, subject.prompt, subject.name)
    x = image_tensor(picture := open_pair(record)[0], recipe.at(subject.size).frame(picture))
    return to_picture(x[:1] / 2 + 0.5)
