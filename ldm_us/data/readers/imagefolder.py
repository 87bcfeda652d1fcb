"""Read any folder of images with captions: `metadata.jsonl` or `metadata.csv`, the imagefolder convention.

Columns, or keys of each JSON line: `file_name` and `text` (the prompt, taken as it is), and where known `mask` (a file;
a JSON line may list several, or {structure: file}), `class`, `group` (a patient, say; else each image is a group) and
`spacing` (mm of a pixel, or two: down and across). `text` may be left out where a dataset.json has a template. The
other names of NAMES are read too, in any letters, among them those of diffusers' datasets, and columns of none of them
are noted. Files are named from the folder and lie in it or below it. After the ImageFolder builder of the Hugging Face
datasets library.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ldm_us.data.medical import Spacing, pixels_of, read_header
from ldm_us.data.organ import ANY, BREAST, DESCRIPTION, MOST_CLASSES, UNKNOWN, Organ, alike, is_plain, organ_of
from ldm_us.data.readers.tables import check_once, file_in, note_unread, plain, read_table, read_text
from ldm_us.data.records import Record

JSONL, CSV = "metadata.jsonl", "metadata.csv"
NAMES = {  # of the columns, by meaning; in a line that fills several of one meaning, the first counts
    "file_name": ("file_name", "image", "file", "image_file", "image_file_name"),
    "text": ("text", "caption", "prompt"),
    "mask": (
        *("mask", "masks", "mask_file_name", "mask_file", "conditioning_image", "conditioning_image_file_name"),
        "conditioning_image_file",
    ),
    "class": ("class", "label"),
    "group": ("group", "patient", "patient_id", "case", "case_id", "subject", "subject_id"),
    "spacing": ("spacing", "pixel_spacing", "mm_per_pixel"),
}


def read_imagefolder(root: Path, notes: list[str]) -> list[Record]:
    """List the records in the order of the metadata. An image without `class` has the label "unknown"."""
    if (root / JSONL).is_file() and (root / CSV).is_file():
        raise ValueError(f"{root} holds {JSONL} and {CSV}. Keep the one that counts.")
    rows: Sequence[tuple[str, dict[str, Any]]]
    path = root / JSONL if (root / JSONL).is_file() else root / CSV
    needed = ("file_name",) if (root / DESCRIPTION).is_file() else ("file_name", "text")
    rows = read_jsonl(path) if path.name == JSONL else read_table(path, needed, NAMES)
    rows, organ = by_meaning(path, rows, notes)
    records = [read_row(root, values, where, organ) for where, values in rows]
    if organ == ANY:
        notes += alike(record.label for record in records)
    images = [record.image for record in records]
    check_once([(i.relative_to(root).as_posix(), where) for i, (where, _) in zip(images, rows, strict=True)])
    prefix = group_prefix(images, [values for _, values in rows])
    return [replace(record, group=f"{prefix}:{record.group}") for record in of_scanners(records, notes)]


def of_scanners(records: Sequence[Record], notes: list[str]) -> list[Record]:
    """Add what the files of scanners say: the spacing, and which are of one patient, who becomes a number.

    A group that somebody told, or a spacing, stays as it is; a group "file NAME" was told by nobody.
    """
    headers, patients = [read_header(record.image) for record in records], dict[str, int]()
    groups = [record.group for record in records]
    for i, header in enumerate(headers):
        if header.patient and groups[i].startswith("file "):
            groups[i] = f"patient {patients.setdefault(header.patient, len(patients) + 1)}"
    if burned := sum(header.burned_in for header in headers):
        notes.append(f"{burned} DICOM files say that text is burned into the picture: look whether it is a name")
    return [
        replace(record, group=group, spacing=record.spacing or header.spacing)
        for record, group, header in zip(records, groups, headers, strict=True)
    ]


def by_meaning(
    path: Path, rows: Sequence[tuple[str, dict[str, Any]]], notes: list[str]
) -> tuple[list[tuple[str, dict[str, Any]]], Organ]:
    """Give what each line says the names of its meanings, and note the columns that are not read; -> with the organ.

    A `label` is a class only where all of them can be: a number or a sentence may be anything. Where no dataset.json
    says what there is and all classes are those of the breast, it is one, as always.
    """
    filled = [{name: value for name, value in line.items() if value not in (None, "", [])} for _, line in rows]
    labels = {str(line[name]).strip() for line in filled for name in line if plain(name) == "label"}
    organ = organ_of(path.parent, ANY)
    others = sorted(label for label in labels if re.fullmatch(r"[-\d.]+", label) or not is_plain(label))
    others = others if len(labels) <= MOST_CLASSES else sorted(labels)
    if organ.classes:
        others = sorted(label for label in labels if organ.find(label) is None and not organ.near(label))
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
    said = {str(values["class"]) for _, values in renamed if values.get("class")}
    breast = organ == ANY and all(BREAST.find(one) for one in said)
    return renamed, replace(BREAST, template=organ.template) if breast else organ


def read_row(root: Path, values: dict[str, Any], where: str, organ: Organ) -> Record:
    """Read what a line says about one image, its group still without the prefix of the folder."""
    described = (root / DESCRIPTION).is_file()
    for key in ("file_name", "text"):
        if not isinstance(values.get(key), str) and not (described and key == "text" and not values.get(key)):
            raise ValueError(f"{where} has no {key} that is a text. Add it.")
    name, label, group = values["file_name"], values.get("class"), values.get("group")
    masks = values.get("mask") or []
    masks = [masks] if isinstance(masks, str) else masks
    structures, masks = (tuple(masks), list(masks.values())) if isinstance(masks, dict) else ((), masks)
    if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
        raise ValueError(f"{where}: mask must be the name of a file, or a list of names.")
    label = str(label) if isinstance(label, int) and organ.find(str(label)) else label
    if not isinstance(label, str | None):
        raise ValueError(f"{where}: the class is {label!r}, and no text. Write its name.")
    label = organ.class_of(label, where) if label else UNKNOWN
    text = values.get("text") or (organ.prompt(label) if described else "")
    group = int(group) if isinstance(group, float) and group.is_integer() else group
    if not isinstance(group, str | int | None):
        raise ValueError(f"{where}: the group is {group!r}. Use a text or a whole number.")
    image, *of_masks = (file_in(root, file, where) for file in (name, *masks))
    if not text.strip():
        raise ValueError(f"{where}: {name!r} has no text. Write its prompt, or remove the line.")
    group = f"file {name}" if group in (None, "") else f"group {group}"
    spacing = spacing_of(values["spacing"], where) if values.get("spacing") else None
    return Record(pixels_of(image), tuple(of_masks), label, text, group, organ, structures, spacing)


def spacing_of(value: Any, where: str) -> Spacing:
    """Millimetres of a pixel, down and across, from a number, a list of two or a text with them."""
    try:
        numbers = [float(one) for one in (value if isinstance(value, list) else str(value).split())]
        down, across = numbers if len(numbers) == 2 else numbers * 2
        if not 0 < min(down, across) <= max(down, across) < math.inf:
            raise ValueError("not above 0")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: the spacing is {value!r}. Write the mm of a pixel: one number, or two, down and across."
        ) from error
    return down, across


def group_prefix(images: Sequence[Path], lines: Sequence[dict[str, Any]], layout: str = "imagefolder") -> str:
    """Name a folder by what it holds: the same wherever it lies, another for other files of the same names."""
    groups = ["" if line.get("group") is None else line["group"] for line in lines]
    named = zip(lines, groups, images, strict=True)
    facts = sorted(f"{line['file_name']}\t{group}\t{path.stat().st_size}" for line, group, path in named)
    return f"{layout} " + sha256("\n".join(facts).encode()).hexdigest()[:8]


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
