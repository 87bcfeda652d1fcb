"""Read images with a JSON of annotations as COCO has it, and the COCO export of CVAT.   cocodataset.org, Data format.

Layout: `annotations/instances_*.json`, or a `.json` beside the images, with the tables images, annotations and
categories; images lie beside it, in `images` or where file_name says. The annotations of one category are one mask of an
image, named after it; an outline is drawn by Pillow, runs are unpacked by pycocotools (extra `coco`).

The class of an image is the first, in the order of dataset.json, that one of its annotations has; without an annotation
the first class of `without`. Where nothing says the classes, all categories are. Nothing says which images are of one
patient: each image is a group.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_us.data.organ import ANY, UNKNOWN, organ_of
from ldm_us.data.readers.imagefolder import group_prefix
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
    organ, drawn = organ_of(root, ANY), list[tuple[Path, tuple[Structure, ...], tuple[str, ...], str]]()
    categories, bare = dict[str, None](), Counter[str]()
    for path in list_tables(root):
        try:
            table = json.loads(read_text(path))
            names = {one["id"]: str(one["name"]) for one in table["categories"]}
            categories |= dict.fromkeys(names.values())
            of_image: dict[Any, list[dict[str, Any]]] = {}
            for one in table["annotations"]:
                of_image.setdefault(one["image_id"], []).append(one)
            for image in table["images"]:
                where = f"{path}, image {image['file_name']!r}"
                masks = masks_of(path, image, of_image.get(image["id"], []), names, bare)
                drawn.append((find_image(root, path, image["file_name"], where), *masks, where))
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not COCO's JSON ({error!r}). Export the annotations again.") from error
    if not drawn:
        raise ValueError(f"{root}: its JSON of annotations names no image. Export it again.")
    if not organ.classes:
        classes = tuple(organ.class_of(one, f"{root}, categories") for one in categories)
        organ = replace(organ, classes=classes, without=tuple(one for one in organ.without if one in classes))
    check_once([(str(image), where) for image, _, _, where in drawn])
    if bare:
        listed = ", ".join(f"{name} {count}" for name, count in bare.items())
        notes.append(f"annotations without an outline, such as boxes, are no masks: {listed}")
    prefix = group_prefix([one[0] for one in drawn], [{"file_name": one[0].name} for one in drawn], "coco")
    records = []
    for image, masks, structures, _ in drawn:
        found = {organ.find(name) for name in structures}
        labels = [one for one in organ.classes if one in found] or list(organ.without if not structures else ())
        label, group = (labels or [UNKNOWN])[0], f"{prefix}:{image.relative_to(root).as_posix()}"
        named = tuple(mask.key.partition(": ")[2] for mask in masks)
        records.append(Record(image, masks, label, organ.prompt(label), group, organ, named))
    return records


def masks_of(
    path: Path, image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[Any, str], bare: Counter[str]
) -> tuple[tuple[Structure, ...], tuple[str, ...]]:
    """A mask for each category of one image that something is drawn of, and all of its categories."""
    outlines: dict[str, list[tuple[float, ...]]] = {}
    runs: dict[str, list[str]] = {}
    for one in annotations:
        name, shape = names[one["category_id"]], one.get("segmentation") or []
        if isinstance(shape, dict):
            runs.setdefault(name, []).append(json.dumps(shape))
        else:  # a corner of a pixel is a whole number there
            drawn = [tuple(float(x) - 0.5 for x in outline) for outline in shape if len(outline) >= LEAST]
            outlines.setdefault(name, []).extend(drawn)
            bare[name] += not drawn
    size, found = (int(image["width"]), int(image["height"])), dict.fromkeys(names[a["category_id"]] for a in annotations)
    masks = [
        Structure(path, f"{image['file_name']}: {name}", size, tuple(outlines.get(name, ())), tuple(runs.get(name, ())))
        for name in found
        if outlines.get(name) or name in runs
    ]
    return tuple(masks), tuple(found)


def find_image(root: Path, path: Path, name: str, where: str) -> Path:
    """The file of an image, which lies in the folder of the dataset."""
    for folder in (root, root / "images", path.parent, path.parent / "images"):
        found = folder / name
        if found.is_file() and ".." not in Path(name).parts and not Path(name).is_absolute():
            return found
    raise ValueError(f"{where} is not a file in {root}. Add it there or in {root / 'images'}, or export again.")
