"""Read BUSI, breast ultrasound images with lesion masks.   Al-Dhabyani et al., Data in Brief 28 (2020) 104863.

Class folders with BUSI's file names are taken for a breast, with the prompt of the paper, unless a dataset.json names
other classes. Samples of a model that was taught other words bring theirs in samples.json.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ldm_us.config import MASK, PICTURE
from ldm_us.data.busi_families import families, first_of_family
from ldm_us.data.opening import IMAGE_SUFFIXES
from ldm_us.data.organ import BREAST, DESCRIPTION, Organ, organ_of
from ldm_us.data.records import BUSI_GROUP, PHANTOM_GROUP, SAMPLES_GROUP, Record
from ldm_us.data.structure import labels_of

PHANTOM_INFO = "phantom.json"  # in a folder of phantoms, whose families differ from those of BUSI's numbers
SAMPLES_INFO = "samples.json"  # in a folder of samples, where those of one mask are a family
NAME = re.compile(  # BUSI's own names are .png, with _mask in small letters: those come first
    r"(?P<stem>(?P<label>[^/\\()]*[^/\\() ]) \((?P<number>\d+)\))(?P<mask>[_-]mask(?:_(?P<nth>\d+))?)?"
    rf"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})",
    re.IGNORECASE,
)
OWN = re.compile(r"[^()A-Z]+ \(\d+\)(?:_mask(?:_\d+)?)?\.png")


def is_busi(root: Path) -> bool:
    """Say whether class folders as in BUSI lie in this folder; described ones, with names as in BUSI in them."""
    folders = [folder for label in told_of(root)[2].classes if (folder := class_folder(root, label)) is not None]
    described = (root / DESCRIPTION).is_file()
    return any(not described or any(NAME.fullmatch(path.name) for path in folder.iterdir()) for folder in folders)


def class_folder(root: Path, label: str) -> Path | None:
    """Find the folder of a class: its very name, else the only one that is so but for its letters' case."""
    if (root / label).is_dir():
        return root / label
    found = (
        [path for path in root.iterdir() if path.name.lower() == label.lower() and path.is_dir()]
        if root.is_dir()
        else []
    )
    return found[0] if len(found) == 1 else None


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
    """List the records of BUSI in natural order, opening nothing; `root` is the folder that holds those of the classes.

    A lesion image without a mask file is kept with no masks.
    """
    check_folder(root)
    groups, prompts, organ = told_of(root)
    folders = {label: folder for label in organ.classes if (folder := class_folder(root, label)) is not None}
    if not folders:
        expected = f"{', '.join(organ.classes[:-1])} or {organ.classes[-1]}"
        raise ValueError(
            f"{root} is not BUSI: expected the folders {expected} in it, found {names_in(root)}. Give the folder that "
            "holds them."
        )
    read = {
        label: read_class(folder, label, groups, prompts.get(label, organ.prompt(label)), organ)
        for label, folder in folders.items()
    }
    empty = [label for label, of_class in read.items() if not of_class]
    if empty:
        raise ValueError(
            f"{root}: no image in {' and '.join(empty)}. Add files named like '{empty[0]} (1).png', or remove the "
            "folder."
        )
    return [record for of_class in read.values() for record in of_class]


def read_class(folder: Path, label: str, groups: Callable[[str], str], prompt: str, organ: Organ) -> list[Record]:
    """List the records of one class folder. Of two files that say the same, one with BUSI's own name is taken."""
    images: dict[str, tuple[int, Path]] = {}
    masks: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (OWN.fullmatch(path.name) is None, path)):
        match = NAME.fullmatch(path.name)
        if match is None or match["label"].lower() != label.lower() or not path.is_file():
            continue
        stem, own = match["stem"].lower(), OWN.fullmatch(path.name) is not None
        nth = int(match["nth"] or 0)  # _mask, _mask_1, _mask_2, ..., _mask_10
        if match["mask"] and (own or nth not in dict(masks.get(stem, []))):
            masks.setdefault(stem, []).append((nth, path))
        elif not match["mask"]:
            images.setdefault(stem, (int(match["number"]), path))
    return [
        Record(path, tuple(mask for _, mask in sorted(masks.get(stem, []))), label, prompt, groups(stem), organ)
        for stem, (_, path) in sorted(images.items(), key=lambda item: item[1])
    ]


def told_of(root: Path) -> tuple[Callable[[str], str], dict[str, str], Organ]:
    """Map an image's stem to its near-duplicate family, named after the family's first member or the image itself.

    The families are those of BUSI's shipped list, or those that the phantoms or samples in this folder list. With it
    the prompts of the classes, of samples whose prompts are not the paper's, and what the classes are.
    """
    organ = organ_of(root, BREAST)
    phantoms, samples = root / PHANTOM_INFO, root / SAMPLES_INFO
    info = phantoms if phantoms.is_file() else samples
    if not info.is_file():
        return lambda stem: BUSI_GROUP + families().get(stem, stem), {}, organ
    try:
        made = json.loads(info.read_text(encoding="utf-8"))
        first = first_of_family([[name.lower() for name in family] for family in made["families"]])
        prefix = f"{PHANTOM_GROUP}{int(made['seed'])}" if info == phantoms else f"{SAMPLES_GROUP}{made['set']}"
        prompts = made.get("prompts", {})
        if not all(isinstance(prompt, str) and prompt for prompt in prompts.values()):
            raise TypeError("a prompt is no text")
        hint = made.get("hint", list(MASK))
        if not isinstance(hint, list) or not all(isinstance(name, str) for name in hint):
            raise TypeError("its hint is no list of names")
        shows = {label: made.get("shows", {}).get(label, organ.shows(label)) for label in (*organ.classes, *prompts)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{info} is damaged ({error!r}). Make the phantoms or samples again, or remove the file."
        ) from error
    organ = replace(organ, classes=tuple(shows), without=tuple(label for label in shows if shows[label] is False))
    if len(hint) > 1:
        organ = replace(organ, structures=tuple(hint), levels=labels_of(len(hint)))
    organ = replace(organ, hint_is_picture=tuple(hint) == PICTURE)
    return lambda stem: f"{prefix}:{first.get(stem, stem)}", prompts, organ
