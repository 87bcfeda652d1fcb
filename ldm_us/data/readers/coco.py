"""Read images with a JSON of annotations as COCO has it, and the COCO export of CVAT.   cocodataset.org, Data format.

Layout: `annotations/instances_*.json`, or a `.json` beside the images, with the tables images, annotations and
categories; images lie beside it, in `images` or where file_name says. The annotations of one category are one mask of
an image, named after it; an outline is drawn by Pillow, runs are unpacked by pycocotools (extra `coco`).

The class of an image is the first, in the order of dataset.json, that one of its annotations has; without an annotation
the first class of `without`. Where nothing says the classes, all categories are. Nothing says which images are of one
patient: each image is a group.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_us.data.organ import ANY, DESCRIPTION, UNKNOWN, Organ, organ_of
from ldm_us.data.readers.imagefolder import group_prefix, of_scanners
from ldm_us.data.readers.tables import check_once, read_text
from ldm_us.data.records import Record
from ldm_us.data.structure import LEAST, Structure

TABLES = ("images", "annotations", "categories")


def list_tables(root: Path) -> list[Path]:
    """List the files of annotations of a folder."""
    files = [*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))]
    texts = ((path, path.read_bytes()) for path in files if path.is_file())
    return [path for path, text in texts if all(f'"{name}"'.encode() in text for name in TABLES)]


def read_coco(root: Path, notes: list[str]) -> list[Record]:
    """List the records in the order of the images in the JSON files. Opens no image."""
    organ, parsed, records, boxed = organ_of(root, ANY), [], list[Record](), Counter[str]()
    for path in list_tables(root):
        try:
            table = json.loads(read_text(path))
            names = {one["id"]: str(one["name"]) for one in table["categories"]}
            shapes: dict[Any, list[tuple[str, Any]]] = {}
            for one in table["annotations"]:
                shape = names[one["category_id"]], one.get("segmentation") or []
                shapes.setdefault(one["image_id"], []).append(shape)
            parsed.append((path, names, [(image, shapes.get(image["id"], [])) for image in table["images"]]))
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not COCO's JSON ({error!r}). Export the annotations again.") from error
    if not organ.classes:
        found = (organ.class_of(name, f"{path}, categories") for path, names, _ in parsed for name in names.values())
        classes = tuple(dict.fromkeys(found))
        organ = replace(organ, classes=classes, without=tuple(one for one in organ.without if one in classes))
    others = sorted({name for _, names, _ in parsed for name in names.values() if organ.find(name) is None})
    if others:
        notes.append(f"categories that {DESCRIPTION} names as no class: {', '.join(others)}")
    for path, _, images in parsed:
        for image, drawn in images:
            try:
                records.append(read_image(root, path, image, drawn, organ, boxed))
            except (TypeError, KeyError) as error:
                raise ValueError(f"{path} is not COCO's JSON ({error!r}). Export the annotations again.") from error
    if not records:
        raise ValueError(f"{root}: its JSON of annotations names no image. Export it again.")
    check_once([(record.group, f"{root}, the JSON of annotations") for record in records])
    if boxed:
        counted = ", ".join(f"{name} {count}" for name, count in boxed.items())
        notes.append(f"annotations without an outline, such as boxes, are no masks: {counted} images")
    prefix = group_prefix([one.image for one in records], [{"file_name": one.group} for one in records], "coco")
    return [replace(record, group=f"{prefix}:{record.group}") for record in of_scanners(records, notes)]


def read_image(
    root: Path, path: Path, image: dict[str, Any], shapes: list[tuple[str, Any]], organ: Organ, boxed: Counter[str]
) -> Record:
    """One image with a mask for each category that something is drawn of; shapes: (category, segmentation)."""
    outlines: dict[str, list[tuple[float, ...]]] = {}
    runs: dict[str, list[str]] = {}
    for category, shape in shapes:
        if isinstance(shape, dict):
            runs.setdefault(category, []).append(json.dumps(shape))
        for outline in shape if isinstance(shape, list) else ():
            if len(outline) >= LEAST:
                outlines.setdefault(category, []).append(tuple(map(float, outline)))
    name, size = image["file_name"], (int(image["width"]), int(image["height"]))
    categories = list(dict.fromkeys(category for category, _ in shapes))
    drawn = tuple(one for one in categories if one in outlines or one in runs)
    boxed.update(one for one in categories if one not in drawn)
    masks = [
        Structure(path, f"{name}: {one}", size, tuple(outlines.get(one, ())), tuple(runs.get(one, ()))) for one in drawn
    ]
    found = {organ.find(category) for category in categories}
    labels = [one for one in organ.classes if one in found] or list(() if found else organ.without)
    label, file = (labels or [UNKNOWN])[0], find_image(root, path, name)
    group = f"file {file.relative_to(root).as_posix()}"
    return Record(file, tuple(masks), label, organ.prompt(label), group, organ, drawn)


def find_image(root: Path, path: Path, name: str) -> Path:
    """The file of an image, which lies in the folder of the dataset."""
    for folder in (root, root / "images", path.parent, path.parent / "images"):
        found = folder / name
        if found.is_file() and ".." not in Path(name).parts and not Path(name).is_absolute():
            return found
    raise ValueError(
        f"{path}, image {name!r} is not a file in {root}. Add it there or in {root / 'images'}, or export again."
    )
