"""What to sample: one subject per class, prompt or mask, each a row of the grid (the paper's Figures 3 and 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm_us.config import MASK
from ldm_us.data.audit.summary import format_names
from ldm_us.data.masks.files import list_masks, parse_name
from ldm_us.data.organ import BREAST, DESCRIPTION, organ_of
from ldm_us.data.readers.busi import class_folder, read_busi, told_of
from ldm_us.data.readers.datasets import layouts_of, read_dataset
from ldm_us.data.readers.imagefolder import CSV, JSONL
from ldm_us.data.readers.left_out import list_left_out
from ldm_us.data.records import Record, followed, structured
from ldm_us.data.structure import MaskFile, in_channels
from ldm_us.data.words import Words
from ldm_us.synthesis.recipe import Beginning, Inversion


@dataclass(frozen=True)
class Subject:
    """One prompt, with or without a mask."""

    name: str  # of the row and of the files
    prompt: str
    masks: tuple[MaskFile, ...] = ()  # OR-ed together; empty: not conditioned on a mask
    original: Path | None = None  # the image the mask was drawn on, where it lies beside it
    label: str = ""  # a class of the model, or that in a mask's name; empty where nobody told
    shows: bool | None = None  # whether this class shows a structure; None where nobody said
    size: int | tuple[int, int] | None = None  # of its samples, where its mask says it: a side, or (height, width)


def choose_subjects(labels: list[str], prompt: str | None, mask: Path | None, words: Words) -> list[Subject]:
    """Subjects from --class, --prompt and --mask; all classes of the model where nothing is asked for."""
    of_class = {label: words.prompt(label) for label in labels}
    if prompt is not None and labels:
        raise ValueError("--class and --prompt both set the text: give one of them.")
    if mask is not None:
        if len(labels) > 1:
            raise ValueError("--mask takes one --class for all masks. Run sample.py once per class.")
        subjects = masked_subjects(mask, words.classes, words.hint)
        return [with_text(subject, labels, prompt, words) for subject in subjects]
    if prompt is not None:
        return [Subject("prompt", prompt)]
    if not labels:
        words.check_classes("without --class and --prompt")
        of_class = {label: words.prompt(label) for label in words.classes}
    chosen = labels or words.classes
    return [Subject(label, of_class[label], label=label, shows=words.shows(label)) for label in chosen]


def with_text(subject: Subject, labels: list[str], prompt: str | None, words: Words) -> Subject:
    """Set the prompt of a mask: what the user asked for, else that of the class in a BUSI file name."""
    if prompt is not None:
        label = words.label_of(prompt) or subject.label
        return replace(subject, prompt=prompt, label=label, shows=words.shows(label))
    label = labels[0] if labels else subject.label
    if not label:
        raise ValueError(f"{subject.masks[0]}: its name tells no class. Give --class or --prompt.")
    asked = f"--class {label}" if labels else f"{subject.masks[0]}, of class {label}"
    return replace(subject, prompt=words.prompt(label, asked), label=label, shows=words.shows(label))


def with_source(begin: Beginning, label: str | None, words: Words) -> Beginning:
    """Set the prompt of what is inverted, where --source-class says what it shows."""
    if label is None or not isinstance(begin, Inversion):
        return begin
    return replace(begin, source_prompt=words.prompt(label, f"--source-class {label}"))


def masked_subjects(path: Path, classes: Sequence[str] = (), hint: tuple[str, ...] = MASK) -> list[Subject]:
    """The subjects of a mask file, of a folder of mask files, or of BUSI itself, whose masks come with originals.

    They have no prompt yet, and a class where their names tell one of a breast or of those of the model. hint: what the
    ControlNet that follows the masks has channels for.
    """
    known = {label.lower(): label for label in (*BREAST.classes, *classes)}  # letters of a file's name have any case
    return [replace(one, label=known.get(one.label.lower(), "")) for one in read_masks(path, hint)[0]]


def as_described(path: Path, masks: Sequence[MaskFile], hint: tuple[str, ...]) -> tuple[MaskFile, ...]:
    """Masks as a ControlNet follows them, by the labels that a dataset.json beside or above them names, if any does."""
    folder = path if path.is_dir() else path.parent
    try:
        organ = organ_of(folder if (folder / DESCRIPTION).is_file() else folder.parent, BREAST)  # or of a class in it
    except ValueError:
        if hint != MASK:
            raise
        organ = BREAST  # other programs have a dataset.json too, and plain masks need none
    described = structured(Record(path, tuple(masks), "", "", "", organ))
    return in_channels(described.masks, described.structures, hint)


def left_out(path: Path | None) -> list[str]:
    """A sentence that names what lies in the folder of --mask and is not sampled, where there is any."""
    files = [] if path is None else read_masks(path)[1]
    return [f"--mask {path}, left out: {format_names([file.name for file in files])}."] if files else []


def read_masks(path: Path, hint: tuple[str, ...] = MASK) -> tuple[list[Subject], list[Path]]:
    """The subjects of --mask, and the files in its folder that are of none."""
    if path.is_file():
        subject = subject_of_file(path)
        return [replace(subject, masks=as_described(path, subject.masks, hint))], []
    if not path.is_dir():
        raise ValueError(f"--mask {path}: no such file or folder.")
    if layout := dataset_in(path):
        records = read_busi(path) if layout == "BUSI" else read_dataset(path)
        files = [file for kind in list_left_out(path, layout, records).values() for file in kind]
        followed_here = [followed(structured(record), hint) for record in records if record.masks]
        subjects = [Subject(r.image.stem, "", r.masks, r.image, r.label) for r in followed_here]
        return subjects, files + [record.image for record in records if not record.masks]
    masks, files = list_masks(path)
    by_name = {subject.name: subject for subject in map(subject_of_file, masks)}  # _mask_1 joins its _mask
    if not by_name:
        raise ValueError(f"--mask {path}: no image files in this folder. Give PNG masks, white on black.")
    subjects = [replace(one, masks=as_described(path, one.masks, hint)) for one in by_name.values()]
    return subjects, files


def dataset_in(path: Path) -> str:
    """The layout of a dataset whose images have masks, which has a name for each; empty for a folder of masks alone."""
    if holds_busi(path):
        return "BUSI"
    try:
        layouts = [layout for layout in layouts_of(path) if layout not in ("BUSI", "described")]
        return layouts[0] if layouts and any(record.masks for record in read_dataset(path)) else ""
    except ValueError:
        if (path / JSONL).is_file() or (path / CSV).is_file():  # they say that it is one
            raise
        return ""


def holds_busi(path: Path) -> bool:
    """Say whether a folder holds those of the classes, with masks in them."""
    try:
        classes = told_of(path)[2].classes
    except ValueError:
        classes = BREAST.classes  # where it is a dataset, its reader says what is wrong
    folders = [folder for label in classes if (folder := class_folder(path, label)) is not None]
    names = [parse_name(file) for folder in folders for file in folder.iterdir()]
    return any(name is not None and name["mask"] for name in names)


def subject_of_file(path: Path) -> Subject:
    """One mask file; of a BUSI name also its class, its other masks and its original."""
    match = parse_name(path)
    if match is None or match["mask"] is None:
        return Subject(path.stem, "", (path,))
    siblings = [(name, file) for file in path.parent.iterdir() if (name := parse_name(file)) is not None]
    of_stem = sorted((file, bool(name["mask"])) for name, file in siblings if name["stem"] == match["stem"])
    masks = tuple(file for file, is_mask in of_stem if is_mask)
    original = next((file for file, is_mask in of_stem if not is_mask), None)
    return Subject(match["stem"], "", masks, original, match["label"])


def check_mask(label: str, shows: bool | None, lesion: bool, where: str) -> None:
    """Refuse a mask with a lesion for a class that shows none, and one without for a class that has one."""
    if shows is False and lesion:
        raise ValueError(f"{where}: a lesion mask for the class {label}. Use another --class, or no mask.")
    if shows and not lesion:
        raise ValueError(f"{where}: an empty mask for the class {label}. Use a --class without one, or draw a lesion.")
