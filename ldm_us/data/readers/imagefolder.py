"""Read any folder of images with captions: `metadata.jsonl` or `metadata.csv`, the imagefolder convention.

Columns, or keys of each JSON line: `file_name` and `text` (the prompt, taken as it is), and where known `mask` (a file;
a JSON line may list several), `class` (normal, benign or malignant) and `group` (a patient, say; else each image is a
group). Files are named from the folder and lie in it or below it. After the ImageFolder builder of the Hugging Face
datasets library.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ldm_us.data.readers.tables import check_once, class_of, file_in, read_table, read_text
from ldm_us.data.records import UNKNOWN, Record

JSONL, CSV = "metadata.jsonl", "metadata.csv"


@dataclass(frozen=True)
class Entry:
    """What the metadata say about one image."""

    where: str  # file and line
    file_name: str
    text: str
    masks: tuple[str, ...]
    label: str  # "" where not given
    group: str  # "" where not given


def is_imagefolder(root: Path) -> bool:
    """Say whether metadata lie in this folder."""
    return (root / JSONL).is_file() or (root / CSV).is_file()


def read_imagefolder(root: Path) -> list[Record]:
    """List the records in the order of the metadata. An image without `class` has the label "unknown"."""
    if (root / JSONL).is_file() and (root / CSV).is_file():
        raise ValueError(f"{root} holds {JSONL} and {CSV}. Keep the one that counts.")
    entries = read_jsonl(root / JSONL) if (root / JSONL).is_file() else read_metadata_csv(root / CSV)
    images = [file_in(root, entry.file_name, entry.where) for entry in entries]
    check_once([path.relative_to(root).as_posix() for path in images], [entry.where for entry in entries])
    prefix = group_prefix(images, entries)
    records = []
    for image, entry in zip(images, entries, strict=True):
        if not entry.text.strip():
            raise ValueError(f"{entry.where}: {entry.file_name!r} has no text. Write its prompt, or remove the line.")
        masks = tuple(file_in(root, mask, entry.where) for mask in entry.masks)
        label = class_of(entry.label, entry.where) if entry.label else UNKNOWN
        group = f"group {entry.group}" if entry.group else f"file {entry.file_name}"
        records.append(Record(image, masks, label, entry.text, f"{prefix}:{group}"))
    return records


def group_prefix(images: list[Path], entries: list[Entry]) -> str:
    """Name a folder by what it holds: the same wherever it lies, another for other files of the same names."""
    facts = sorted(f"{e.file_name}\t{e.group}\t{path.stat().st_size}" for path, e in zip(images, entries, strict=True))
    return "imagefolder " + sha256("\n".join(facts).encode()).hexdigest()[:8]


def read_metadata_csv(path: Path) -> list[Entry]:
    """Read the entries of metadata.csv."""
    entries = []
    for row in read_table(path, ("file_name", "text")):
        mask, label, group = (row.cells.get(column, "") for column in ("mask", "class", "group"))
        masks = (mask,) if mask else ()
        entries.append(Entry(row.where, row.cells["file_name"], row.cells["text"], masks, label, group))
    return entries


def read_jsonl(path: Path) -> list[Entry]:
    """Read the entries of metadata.jsonl, one JSON object a line; empty lines are left out."""
    lines = [(f"{path} line {nth}", line) for nth, line in enumerate(read_text(path).split("\n"), start=1)]
    entries = [read_line(line, where) for where, line in lines if line.strip()]
    if not entries:
        raise ValueError(f'{path} is empty. Write one line for each image: {{"file_name": "a.png", "text": "..."}}.')
    return entries


def read_line(line: str, where: str) -> Entry:
    """Read one JSON line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). Mend it.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where} is not a JSON object. Write {{...}} with file_name and text.")
    for key in ("file_name", "text"):
        if not isinstance(values.get(key), str):
            raise ValueError(f"{where} has no {key} that is a text. Add it.")
    masks = values.get("mask") or []
    masks = [masks] if isinstance(masks, str) else masks
    if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
        raise ValueError(f"{where}: mask must be the name of a file, or a list of names.")
    label, group = values.get("class"), values.get("group")
    if not isinstance(label, str | None):
        raise ValueError(f"{where}: the class is {label!r}. Use normal, benign or malignant.")
    if not isinstance(group, str | int | None):
        raise ValueError(f"{where}: the group is {group!r}. Use a text or a whole number.")
    group = "" if group is None else str(group)
    return Entry(where, values["file_name"], values["text"], tuple(masks), label or "", group)
