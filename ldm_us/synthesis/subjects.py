"""What to sample: one subject per class, prompt or mask, each a row of the grid (the paper's Figures 3 and 4)."""

from dataclasses import dataclass, replace
from pathlib import Path

from ldm_us.data.readers.busi import CLASSES, NAME, read_busi
from ldm_us.data.records import LESION_CLASSES, class_prompt, prompted_class

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Subject:
    """One prompt, with or without a mask."""

    name: str  # of the row and of the files
    prompt: str
    masks: tuple[Path, ...] = ()  # OR-ed together; empty: not conditioned on a mask
    original: Path | None = None  # the image the mask was drawn on, where it lies beside it
    label: str = ""  # of CLASSES; empty where nobody told


def choose_subjects(labels: list[str], prompt: str | None, mask: Path | None) -> list[Subject]:
    """Subjects from --class, --prompt and --mask; all classes where nothing is asked for."""
    for label in labels:
        if label not in CLASSES:
            raise ValueError(f"--class {label}: unknown. Use {', '.join(CLASSES)}, or --prompt for other texts.")
    if prompt is not None and labels:
        raise ValueError("--class and --prompt both set the text: give one of them.")
    if mask is not None:
        if len(labels) > 1:
            raise ValueError("--mask takes one --class for all masks. Run sample.py once per class.")
        return [with_text(subject, labels, prompt) for subject in masked_subjects(mask)]
    if prompt is not None:
        return [Subject("prompt", prompt)]
    return [Subject(label, class_prompt(label), label=label) for label in labels or CLASSES]


def with_text(subject: Subject, labels: list[str], prompt: str | None) -> Subject:
    """Set the prompt of a mask: what the user asked for, else the class in a BUSI file name."""
    text = prompt if prompt is not None else class_prompt(labels[0]) if labels else subject.prompt
    if not text and prompt is None:
        raise ValueError(f"{subject.masks[0]}: its name tells no class. Give --class or --prompt.")
    return replace(subject, prompt=text, label=labels[0] if labels else prompted_class(text) or subject.label)


def masked_subjects(path: Path) -> list[Subject]:
    """A mask file, a folder of mask files, or BUSI itself, whose masks come with their originals."""
    if path.is_file():
        return [subject_of_file(path)]
    if not path.is_dir():
        raise ValueError(f"--mask {path}: no such file or folder.")
    if any(path.glob("*/*_mask.png")):
        records = [record for record in read_busi(path) if record.masks]
        return [Subject(r.image.stem, r.prompt, r.masks, r.image, r.label) for r in records]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
    masks = [file for file in files if "_mask" in file.stem] or files  # a class folder of BUSI holds both
    subjects = {subject.name: subject for subject in map(subject_of_file, masks)}  # _mask_1 joins its _mask
    if not subjects:
        raise ValueError(f"--mask {path}: no image files in this folder. Give PNG masks, white on black.")
    return list(subjects.values())


def subject_of_file(path: Path) -> Subject:
    """One mask file; of a BUSI name also its class, its other masks and its original."""
    match = NAME.fullmatch(path.name)
    if match is None or match["mask"] is None:
        return Subject(path.stem, "", (path,))
    stem, original = match["stem"], path.with_name(f"{match['stem']}.png")
    names = ((NAME.fullmatch(file.name), file) for file in path.parent.iterdir())
    masks = sorted(file for name, file in names if name is not None and name["mask"] and name["stem"] == stem)
    named = match["label"].lower()
    label = named if named in CLASSES else ""
    return Subject(stem, class_prompt(named), tuple(masks), original if original.is_file() else None, label)


def check_mask(label: str, lesion: bool, where: str) -> None:
    """Refuse a mask with a lesion for the class normal, and one without for a class that has a lesion."""
    if label == "normal" and lesion:
        raise ValueError(f"{where}: a lesion mask for the class normal. Use --class benign or malignant, or no mask.")
    if label in LESION_CLASSES and not lesion:
        raise ValueError(f"{where}: an empty mask for the class {label}. Use --class normal, or draw a lesion.")
