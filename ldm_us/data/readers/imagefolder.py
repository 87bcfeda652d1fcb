"""Read any folder of images with captions: `metadata.jsonl` or `metadata.csv`, the imagefolder convention.

Columns, or keys of each JSON line: `file_name` and `text` (the prompt, taken as it is), and where known `mask` (a file;
a JSON line may list several), `class` (normal, benign or malignant) and `group` (a patient, say; else each image is a
group). The other names of NAMES are read too, in any letters, and columns of none of them are noted. Files are named
from the folder and lie in it or below it. After the ImageFolder builder of the Hugging Face datasets library.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ldm_us.data.readers.tables import check_once, class_of, file_in, note_unread, plain, read_table, read_text
from ldm_us.data.records import CLASSES, UNKNOWN, Record

JSONL, CSV = "metadata.jsonl", "metadata.csv"
NAMES = {  # of the columns, by meaning; in a line that fills several of one meaning, the first counts
    "file_name": ("file_name", "image", "file", "image_file"),
    "text": ("text", "caption", "prompt"),
    "mask": ("mask", "masks", "mask_file_name", "mask_file", "conditioning_image"),
    "class": ("class", "label"),
    "group": ("group", "patient", "patient_id", "case", "case_id", "subject", "subject_id"),
}


def read_imagefolder(root: Path, notes: list[str]) -> list[Record]:
    """List the records in the order of the metadata. An image without `class` has the label "unknown"."""
    if (root / JSONL).is_file() and (root / CSV).is_file():
        raise ValueError(f"{root} holds {JSONL} and {CSV}. Keep the one that counts.")
    rows: Sequence[tuple[str, dict[str, Any]]]
    path = root / JSONL if (root / JSONL).is_file() else root / CSV
    rows = read_jsonl(path) if path.name == JSONL else read_table(path, ("file_name", "text"), NAMES)
    rows = by_meaning(path, rows, notes)
    records = [read_row(root, values, where) for where, values in rows]
    images = [record.image for record in records]
    check_once([(i.relative_to(root).as_posix(), where) for i, (where, _) in zip(images, rows, strict=True)])
    prefix = group_prefix(images, [values for _, values in rows])
    return [replace(record, group=f"{prefix}:{record.group}") for record in records]


def by_meaning(
    path: Path, rows: Sequence[tuple[str, dict[str, Any]]], notes: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Give what each line says the names of its meanings, and note the columns that are not read.

    A `label` is a class only where all of them are: else it may be anything.
    """
    filled = [{name: value for name, value in line.items() if value not in (None, "", [])} for _, line in rows]
    labels = {str(line[name]).strip() for line in filled for name in line if plain(name) == "label"}
    others = sorted(label for label in labels if label.lower() not in CLASSES)
    if 0 < len(others) < len(labels):
        notes.append(f"label in {path.name} is not read as the class: it says {others[0]!r} too")
    known = NAMES | {"class": ("class",)} if others else NAMES
    renamed = []
    for (where, line), values in zip(rows, filled, strict=True):
        meant = {meaning: line[meaning] for meaning in known if line.get(meaning) == ""}
        for meaning, names in known.items():
            order = [plain(name) for name in names]
            fitting = [name for name in values if plain(name) in order]
            if fitting:
                first = min(fitting, key=lambda name: (order.index(plain(name)), name not in names))
                meant[meaning] = values.pop(first)
        renamed.append((where, meant))
    note_unread(path, {name for values in filled for name in values}, (), notes)
    return renamed


def read_row(root: Path, values: dict[str, Any], where: str) -> Record:
    """Read what a line says about one image, its group still without the prefix of the folder."""
    for key in ("file_name", "text"):
        if not isinstance(values.get(key), str):
            raise ValueError(f"{where} has no {key} that is a text. Add it.")
    name, text, label, group = values["file_name"], values["text"], values.get("class"), values.get("group")
    masks = values.get("mask") or []
    masks = [masks] if isinstance(masks, str) else masks
    if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
        raise ValueError(f"{where}: mask must be the name of a file, or a list of names.")
    if not isinstance(label, str | None):
        raise ValueError(f"{where}: the class is {label!r}. Use normal, benign or malignant.")
    group = int(group) if isinstance(group, float) and group.is_integer() else group
    if not isinstance(group, str | int | None):
        raise ValueError(f"{where}: the group is {group!r}. Use a text or a whole number.")
    image, *of_masks = (file_in(root, file, where) for file in (name, *masks))
    if not text.strip():
        raise ValueError(f"{where}: {name!r} has no text. Write its prompt, or remove the line.")
    group = f"file {name}" if group in (None, "") else f"group {group}"
    return Record(image, tuple(of_masks), class_of(label, where) if label else UNKNOWN, text, group)


def group_prefix(images: list[Path], lines: list[dict[str, Any]]) -> str:
    """Name a folder by what it holds: the same wherever it lies, another for other files of the same names."""
    groups = ["" if line.get("group") is None else line["group"] for line in lines]
    named = zip(lines, groups, images, strict=True)
    facts = sorted(f"{line['file_name']}\t{group}\t{path.stat().st_size}" for line, group, path in named)
    return "imagefolder " + sha256("\n".join(facts).encode()).hexdigest()[:8]


def number_or_none(name: str) -> float | None:
    """Read Infinity or -Infinity as a number, and NaN as nothing, for which pandas writes it."""
    return None if name == "NaN" else float(name)


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read metadata.jsonl, one JSON object a line, each with where it stands; empty lines are left out."""
    rows = []
    for nth, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path} line {nth}"
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_constant=number_or_none)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}). Mend it.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{where} is not a JSON object. Write {{...}} with file_name and text.")
        rows.append((where, values))
    if not rows:
        raise ValueError(f'{path} is empty. Write one line for each image: {{"file_name": "a.png", "text": "..."}}.')
    return rows
