"""Read BUSI, breast ultrasound images with lesion masks.   Al-Dhabyani et al., Data in Brief 28 (2020) 104863.

Near-duplicate families. BUSI holds many images twice or more. `busi_families.json` lists groups of near-duplicates,
found with the normalised cross-correlation of 96x96 high-passed images, shifts of +-2 pixels and a threshold of 0.5
(few values lie near it). A family of one is an image that was compared and has no duplicate. The list covers 617 of the
780 published images; an image that it does not know is its own group, and the audit counts those.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from ldm_us.data.records import BUSI_GROUP, CLASSES, PHANTOM_GROUP, SAMPLES_GROUP, Record, class_prompt

PHANTOM_INFO = "phantom.json"  # in a folder of phantoms, whose families differ from those of BUSI's numbers
SAMPLES_INFO = "samples.json"  # in a folder of samples, where those of one mask are a family
NAME = re.compile(r"(?P<stem>(?P<label>[a-z]+) \((?P<number>\d+)\))(?P<mask>_mask(?:_(?P<nth>\d+))?)?\.png")


@dataclass(frozen=True)
class Listing:
    """What lies in a BUSI folder, by name only."""

    records: list[Record] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)  # class folders without an image
    orphan_masks: list[Path] = field(default_factory=list)  # masks whose image is missing
    other_files: list[Path] = field(default_factory=list)  # skipped: not named like BUSI files


def is_busi(root: Path) -> bool:
    """Say whether class folders as in BUSI lie in this folder."""
    return any((root / label).is_dir() for label in CLASSES)


def check_folder(folder: Path) -> None:
    """Refuse what is no folder."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}. Give the folder of a dataset.")


def names_in(folder: Path) -> str:
    """Write the first names in a folder."""
    names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
    return (", ".join(names[:5]) or "nothing") + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_busi(root: Path) -> list[Record]:
    """List the records of BUSI in natural order; `root` is the folder that holds those of the classes.

    A lesion image without a mask file is kept with no masks, and files named otherwise are skipped: the audit tells.
    """
    listing = list_busi(root)
    if listing.empty_classes:
        names = " and ".join(listing.empty_classes)
        example = f"{listing.empty_classes[0]} (1).png"
        raise ValueError(f"{root}: no image in {names}. Add files named like '{example}', or remove the folder.")
    return listing.records


def list_busi(root: Path) -> Listing:
    """Sort the files of a BUSI folder into records, orphan masks and the rest, without opening them."""
    check_folder(root)
    if not is_busi(root):
        raise ValueError(
            f"{root} is not BUSI: expected the folders benign, malignant or normal in it, found {names_in(root)}. "
            "Give the folder that holds them."
        )
    listing, groups = Listing(), family_groups(root)
    for label in CLASSES:
        if (root / label).is_dir():
            list_class(root / label, groups, listing)
    return listing


def list_class(folder: Path, groups: Callable[[str], str], listing: Listing) -> None:
    """Add what lies in one class folder, the records in natural order."""
    images: dict[str, tuple[int, Path]] = {}
    masks: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match is None or match["label"] != folder.name or not path.is_file():
            listing.other_files.append(path)
        elif match["mask"]:
            nth = int(match["nth"] or 0)  # _mask, _mask_1, _mask_2, ..., _mask_10
            masks.setdefault(match["stem"], []).append((nth, path))
        else:
            images[match["stem"]] = int(match["number"]), path
    for stem, (_, path) in sorted(images.items(), key=lambda item: item[1]):
        ordered = tuple(mask for _, mask in sorted(masks.get(stem, [])))
        listing.records.append(Record(path, ordered, folder.name, class_prompt(folder.name), groups(stem)))
    listing.orphan_masks.extend(sorted(path for stem in masks.keys() - images.keys() for _, path in masks[stem]))
    if not images:
        listing.empty_classes.append(folder.name)


def family_groups(root: Path) -> Callable[[str], str]:
    """Map an image's stem to its near-duplicate family, named after the family's first member or the image itself.

    The families are those of BUSI's shipped list, or those that the phantoms or samples in this folder list.
    """
    phantoms, samples = root / PHANTOM_INFO, root / SAMPLES_INFO
    info = phantoms if phantoms.is_file() else samples
    if not info.is_file():
        return lambda stem: BUSI_GROUP + families().get(stem, stem)
    try:
        made = json.loads(info.read_text(encoding="utf-8"))
        first = first_of_family(made["families"])
        prefix = f"{PHANTOM_GROUP}{int(made['seed'])}" if info == phantoms else f"{SAMPLES_GROUP}{made['set']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{info} is damaged ({error!r}). Make the phantoms or samples again, or remove the file."
        ) from error
    return lambda stem: f"{prefix}:{first.get(stem, stem)}"


@cache
def families() -> dict[str, str]:
    """Map the stem of every image that the shipped list knows to the stem of its family's first member."""
    listed = files("ldm_us.data.readers").joinpath("busi_families.json").read_text(encoding="utf-8")
    return first_of_family(json.loads(listed))


def first_of_family(lists: Sequence[Sequence[str]]) -> dict[str, str]:
    """Families of file names -> {stem: stem of the first of its family}."""
    return {name.removesuffix(".png"): names[0].removesuffix(".png") for names in lists for name in names}
