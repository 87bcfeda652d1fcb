"""Read BUSI, breast ultrasound images with lesion masks.   Al-Dhabyani et al., Data in Brief 28 (2020) 104863.

Near-duplicate families. BUSI holds many images twice or more. `busi_families.json` lists groups of near-duplicates,
found with the normalised cross-correlation of 96x96 high-passed images, shifts of +-2 pixels and a threshold of 0.5
(few values lie near it). A family of one is an image that was compared and has no duplicate. The list covers 617 of the
780 published images; an image that it does not know is its own group, and the audit counts those.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from ldm_us.data.records import BUSI_GROUP, CLASSES, PAPER_PROMPT, PHANTOM_GROUP, SAMPLES_GROUP, Record

PROMPT = PAPER_PROMPT  # also of phantoms, and of other images in this layout
FOLDER = "Dataset_BUSI_with_GT"
PHANTOM_INFO = "phantom.json"  # in a folder of phantoms, whose families differ from those of BUSI's numbers
SAMPLES_INFO = "samples.json"  # in a folder of samples, where those of one mask are a family
NAME = re.compile(r"(?P<stem>(?P<label>[a-z]+) \((?P<number>\d+)\))(?P<mask>_mask(?:_(?P<nth>\d+))?)?\.png")


@dataclass(frozen=True)
class Listing:
    """What lies in a BUSI folder, by name only."""

    records: list[Record]
    empty_classes: list[str]  # class folders without an image
    orphan_masks: list[Path]  # masks whose image is missing
    other_files: list[Path]  # skipped: not named like BUSI files


def is_busi(root: Path) -> bool:
    """Say whether class folders as in BUSI lie in this folder."""
    return any((root / label).is_dir() for label in CLASSES)


def read_busi(folder: Path) -> list[Record]:
    """List the records of BUSI in natural order; `folder` is Dataset_BUSI_with_GT or the folder that holds it.

    A lesion image without a mask file is kept with no masks, and files named otherwise are skipped: the audit tells.
    """
    listing = list_busi(folder)
    if listing.empty_classes:
        names = " and ".join(listing.empty_classes)
        example = f"{listing.empty_classes[0]} (1).png"
        raise ValueError(f"{folder}: no image in {names}. Add files named like '{example}', or remove the folder.")
    return listing.records


def list_busi(folder: Path) -> Listing:
    """Sort the files of a BUSI folder into records, orphan masks and the rest, without opening them."""
    root = find_root(Path(folder))
    listing = Listing([], [], [], [])
    groups = family_groups(root)
    for label in CLASSES:
        if (root / label).is_dir():
            records, orphans, others = list_class(root / label, label, groups)
            listing.records.extend(records)
            listing.orphan_masks.extend(orphans)
            listing.other_files.extend(others)
            if not records:
                listing.empty_classes.append(label)
    return listing


def find_root(folder: Path) -> Path:
    """Find the folder that holds the class folders: `folder` or its Dataset_BUSI_with_GT."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}. Give the folder {FOLDER} or the one that holds it.")
    for root in (folder, folder / FOLDER):
        if is_busi(root):
            return root
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    raise ValueError(
        f"{folder} is not BUSI: expected the folders benign, malignant or normal (or {FOLDER} with them), "
        f"found {listed or 'nothing'}. Give the folder {FOLDER} or the one that holds it."
    )


def list_class(folder: Path, label: str, groups: Callable[[str], str]) -> tuple[list[Record], list[Path], list[Path]]:
    """List one class folder: records in natural order, masks without an image, files with other names."""
    images: dict[str, tuple[int, Path]] = {}
    masks: dict[str, list[tuple[int, Path]]] = {}
    others = []
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match is None or match["label"] != label or not path.is_file():
            others.append(path)
        elif match["mask"]:
            nth = int(match["nth"] or 0)  # _mask, _mask_1, _mask_2, ..., _mask_10
            masks.setdefault(match["stem"], []).append((nth, path))
        else:
            images[match["stem"]] = int(match["number"]), path
    records = []
    for stem, (_, path) in sorted(images.items(), key=lambda item: item[1]):
        ordered = tuple(mask for _, mask in sorted(masks.get(stem, [])))
        records.append(Record(path, ordered, label, PROMPT.format(label=label), groups(stem)))
    orphans = [path for stem in masks.keys() - images.keys() for _, path in masks[stem]]
    return records, sorted(orphans), others


def family_groups(root: Path) -> Callable[[str], str]:
    """Map an image's stem to its near-duplicate family: BUSI's shipped list, or that of phantoms or samples."""
    phantoms, samples = root / PHANTOM_INFO, root / SAMPLES_INFO
    info = phantoms if phantoms.is_file() else samples
    if not info.is_file():
        return busi_group
    try:
        made = json.loads(info.read_text(encoding="utf-8"))
        first = first_of_family(made["families"])
        prefix = f"{PHANTOM_GROUP}{int(made['seed'])}" if info == phantoms else f"{SAMPLES_GROUP}{made['set']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{info} is damaged ({error!r}). Make the phantoms or samples again, or remove the file."
        ) from error
    return lambda stem: f"{prefix}:{first.get(stem, stem)}"


def busi_group(stem: str) -> str:
    """Name the near-duplicate family of an image by the family's first member, else by the image itself."""
    return BUSI_GROUP + families().get(stem, stem)


@cache
def families() -> dict[str, str]:
    """Map the stem of every image that the shipped list knows to the stem of its family's first member."""
    listed = files("ldm_us.data.readers").joinpath("busi_families.json").read_text(encoding="utf-8")
    return first_of_family(json.loads(listed))


def first_of_family(lists: Sequence[Sequence[str]]) -> dict[str, str]:
    """Families of file names -> {stem: stem of the first of its family}."""
    return {name.removesuffix(".png"): names[0].removesuffix(".png") for names in lists for name in names}
