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
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Annotated:
    """One image of a file of annotations."""

    image: Path
    where: str
    masks: tuple[Structure, ...]
    structures: tuple[str, ...]  # the category of each mask
    categories: tuple[str, ...]  # of every annotation, drawn or not


def read_coco(root: Path, notes: list[str]) -> list[Record]:
    """List the records in the order of the images in the JSON files. Opens no image."""
    organ, listed, categories = organ_of(root, ANY), list[Annotated](), dict[str, None]()
    for path in list_tables(root):
        try:
            table = json.loads(read_text(path))
            names = {one["id"]: str(one["name"]) for one in table["categories"]}
            categories |= dict.fromkeys(names.values())
            of_image: dict[Any, list[dict[str, Any]]] = {}
            for one in table["annotations"]:
                of_image.setdefault(one["image_id"], []).append(one)
            listed += [annotated(root, path, one, of_image.get(one["id"], []), names) for one in table["images"]]
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not COCO's JSON ({error!r}). Export the annotations again.") from error
    if not listed:
        raise ValueError(f"{root}: its JSON of annotations names no image. Export it again.")
    if not organ.classes:
        classes = tuple(organ.class_of(one, f"{root}, categories") for one in categories)
        organ = replace(organ, classes=classes, without=tuple(one for one in organ.without if one in classes))
    names_of = [one.image.relative_to(root).as_posix() for one in listed]
    check_once([(name, one.where) for name, one in zip(names_of, listed, strict=True)])
    bare = Counter(name for one in listed for name in one.categories if name not in one.structures)
    if bare:
        counted = ", ".join(f"{name} {count}" for name, count in bare.items())
        notes.append(f"annotations without an outline, such as boxes, are no masks: {counted} images")
    prefix = group_prefix([one.image for one in listed], [{"file_name": name} for name in names_of], "coco")
    records = []
    for name, one in zip(names_of, listed, strict=True):
        found = {organ.find(category) for category in one.categories}
        labels = [label for label in organ.classes if label in found] or list(() if found else organ.without)
        label = (labels or [UNKNOWN])[0]
        prompt, group = organ.prompt(label), f"{prefix}:{name}"
        records.append(Record(one.image, one.masks, label, prompt, group, organ, one.structures))
    return records


def annotated(
    root: Path, path: Path, image: dict[str, Any], annotations: Sequence[dict[str, Any]], names: dict[Any, str]
) -> Annotated:
    """One image with a mask for each category that something is drawn of."""
    outlines: dict[str, list[tuple[float, ...]]] = {}
    runs: dict[str, list[str]] = {}
    for one in annotations:
        name, shape = names[one["category_id"]], one.get("segmentation") or []
        if isinstance(shape, dict):
            runs.setdefault(name, []).append(json.dumps(shape))
        for outline in shape if isinstance(shape, list) else ():
            if len(outline) >= LEAST:
                outlines.setdefault(name, []).append(tuple(map(float, outline)))
    size, file_name = (int(image["width"]), int(image["height"])), image["file_name"]
    categories = tuple(dict.fromkeys(names[one["category_id"]] for one in annotations))
    drawn = tuple(name for name in categories if name in outlines or name in runs)
    masks = tuple(
        Structure(path, f"{file_name}: {name}", size, tuple(outlines.get(name, ())), tuple(runs.get(name, ())))
        for name in drawn
    )
    where = f"{path}, image {file_name!r}"
    return Annotated(find_image(root, path, file_name, where), where, masks, drawn, categories)


def find_image(root: Path, path: Path, name: str, where: str) -> Path:
    """The file of an image, which lies in the folder of the dataset."""
    for folder in (root, root / "images", path.parent, path.parent / "images"):
        found = folder / name
        if found.is_file() and ".." not in Path(name).parts and not Path(name).is_absolute():
            return found
    raise ValueError(f"{where} is not a file in {root}. Add it there or in {root / 'images'}, or export again.")
