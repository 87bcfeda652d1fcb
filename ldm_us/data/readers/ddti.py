"""Read DDTI, ultrasound images of thyroid nodules.   Pedraza et al., Proc. SPIE 9287 (2015) 92870W.

Layout: `12.xml`, a case with its TI-RADS and the outlines in each of its images, `12_1.jpg`, `12_2.jpg`, ... A case is
a group. The class is the score as it is written, for which of them are benign is a choice: dataset.json makes it, with
{"classes": {"benign": ["2", "3"], "malignant": ["4a", "4b", "4c", "5"]}}.
"""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from ldm_us.data.opening import decode
from ldm_us.data.organ import UNKNOWN, Organ, organ_of
from ldm_us.data.records import Record
from ldm_us.data.structure import LEAST, Structure

SCORES = ("2", "3", "4a", "4b", "4c", "5")
CLASSES = tuple(f"TI-RADS {score}" for score in SCORES)
DDTI = Organ(
    "Ultrasound image of a {label} thyroid nodule, from DDTI", CLASSES, (), tuple(zip(SCORES, CLASSES, strict=True))
)
IMAGE = re.compile(r"(?P<case>\d+)_(?P<nth>\d+)\.jpe?g", re.IGNORECASE)


def list_cases(root: Path) -> dict[str, list[Path]]:
    """List the images of each case that has an XML file."""
    cases: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        match = IMAGE.fullmatch(path.name)
        if match is not None and (root / f"{match['case']}.xml").is_file():
            cases.setdefault(match["case"], []).append(path)
    return cases


def read_ddti(root: Path, notes: list[str]) -> list[Record]:
    """List the records by case. Opens the images that outlines are drawn on, for their size."""
    organ, records, unknown = organ_of(root, DDTI), [], 0
    for case, images in sorted(list_cases(root).items(), key=lambda item: int(item[0])):
        path = root / f"{case}.xml"
        score, outlines = read_case(path)
        label = organ.class_of(score, str(path)) if score else UNKNOWN
        for image in images:
            nth = image.stem.partition("_")[2]
            drawn = tuple(outlines.get(nth, []))
            masks = (Structure(path, f"image {nth}", decode(image).size, drawn),) if drawn else ()
            unknown += label == UNKNOWN
            records.append(
                Record(image, masks, label, organ.prompt(label), f"ddti:{case}", organ, ("nodule",) * len(masks))
            )
    if unknown:
        notes.append(f"{unknown} images have no TI-RADS, and so no class")
    return records


def read_case(path: Path) -> tuple[str, dict[str, list[tuple[float, ...]]]]:
    """The score of a case, empty where there is none, and the outlines in each of its images, from centre to centre."""
    outlines: dict[str, list[tuple[float, ...]]] = {}
    try:
        case = ElementTree.fromstring(path.read_bytes())
        for mark in case.iter("mark"):
            number, drawn = (mark.findtext("image") or "").strip(), (mark.findtext("svg") or "").strip()
            for one in json.loads(drawn) if drawn else []:
                outline = tuple(float(point[axis]) + 0.5 for point in one["points"] for axis in ("x", "y"))
                if len(outline) >= LEAST:
                    outlines.setdefault(number, []).append(outline)
    except (ElementTree.ParseError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a case of DDTI ({error!r}). Copy it again from its source.") from error
    return (case.findtext("tirads") or "").strip(), outlines
