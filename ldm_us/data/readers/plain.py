"""Read pictures that no table lists: the captions of kohya, DICOM files, folders of images and masks (TN3K), classes.

- A caption is the `.txt` beside an image; else the prompt is the template of dataset.json with the class.
- The class is the folder that is named as one of dataset.json.
- A mask has the name of its image with _mask (_mask_1, ...) in it, or lies in a folder `masks` (`trainval-mask`)
  where its image lies in `images` (`trainval-image`).
- A DICOM file says whose it is: the images of a patient are one group, which has a number and no name.

TN3K: 3,493 ultrasound images of thyroid nodules (Gong et al., Comput Biol Med 155 (2023) 106389).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm_us.data.medical import DICOM, VOLUMES, pixels_of
from ldm_us.data.opening import IMAGE_SUFFIXES
from ldm_us.data.organ import ANY, DESCRIPTION, UNKNOWN, Organ, organ_of
from ldm_us.data.readers.imagefolder import group_prefix, of_scanners
from ldm_us.data.readers.left_out import MADE_NAMES, files_below
from ldm_us.data.readers.tables import read_text
from ldm_us.data.records import Record

TN3K = Organ("Ultrasound image of a thyroid nodule, from TN3K", without=())
SUFFIXES = (*IMAGE_SUFFIXES, *DICOM, *(end for end in VOLUMES if end not in (".raw", ".zraw")))
FOLDER = re.compile(r"(?:^|(?<=[^a-z]))(image|img|mask)s?$", re.IGNORECASE)
MASK = re.compile(r"(?P<stem>.+?)[ _-]masks?(?:_(?P<nth>\d+))?", re.IGNORECASE)
REPEATS = re.compile(r"\d+_.+")  # kohya's folders: how often each image counts, and a word
Key = tuple[tuple[str, ...], str]  # folders and name, the same for an image and its masks


def pictures_in(folder: Path) -> list[Path]:
    """List the pictures in a folder, of scanners too."""
    return [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(SUFFIXES) and path.is_file()]


def has_captions(root: Path) -> bool:
    """Say whether a text of its name lies beside a picture, here or in a folder of kohya's."""
    folders = [root, *(path for path in root.iterdir() if path.is_dir() and REPEATS.fullmatch(path.name))]
    return any(path.with_suffix(".txt").is_file() for folder in folders for path in pictures_in(folder))


def has_dicom(root: Path) -> bool:
    """Say whether DICOM files lie in a folder."""
    return any(path.name.lower().endswith(DICOM) for path in pictures_in(root))


def has_pairs(root: Path) -> bool:
    """Say whether this is TN3K."""
    return any((root / f"{part}-image").is_dir() and (root / f"{part}-mask").is_dir() for part in ("trainval", "test"))


def read_plain(root: Path, notes: list[str], default: Organ = ANY) -> list[Record]:
    """List the records by name. Opens no picture, but the header of those of scanners."""
    organ = organ_of(root, default)
    masks: dict[Key, list[tuple[int, Path]]] = {}
    images: dict[Key, Path] = {}
    for path in files_below(root):
        inside = path.relative_to(root)
        if not path.name.lower().endswith(SUFFIXES) or inside.parts[0] in MADE_NAMES:
            continue
        key, nth = key_of(inside)
        if nth is not None:
            masks.setdefault(key, []).append((nth, path))
        elif key in images:
            raise ValueError(f"{path}: {images[key].name} is of the same name. Keep one of them, or rename it.")
        else:
            images[key] = path
    if not images:
        raise ValueError(f"{root} holds no pictures but masks. Add the images that they were drawn on.")
    records = []
    for key, path in images.items():
        inside, caption = path.relative_to(root), path.with_suffix(".txt")
        label = class_of(inside, organ, root)
        prompt = read_text(caption).strip() if caption.is_file() else organ.prompt(label)
        if not prompt:
            raise ValueError(f"{caption} is empty, and the prompt of its image. Write it, or remove the file.")
        of_image = tuple(pixels_of(mask) for _, mask in sorted(masks.get(key, [])))
        records.append(Record(pixels_of(path), of_image, label, prompt, f"file {inside.as_posix()}", organ))
    names = [{"file_name": record.group} for record in records]
    prefix = "tn3k" if default == TN3K else group_prefix([record.image for record in records], names, "images")
    notes += notes_of(root, records, organ)
    return [replace(record, group=f"{prefix}:{record.group}") for record in of_scanners(records, notes)]


def key_of(inside: Path) -> tuple[Key, int | None]:
    """What an image and its masks have in common; with the number of a mask, None for an image."""
    stem, folders = inside.name.partition(".")[0] if inside.name.endswith(".gz") else inside.stem, inside.parts[:-1]
    named = MASK.fullmatch(stem)
    is_mask = any((match := FOLDER.search(part)) and match[1].lower() == "mask" for part in folders) or bool(named)
    key = tuple(FOLDER.sub("*", part).lower() for part in folders), (named["stem"] if named else stem)
    return key, (int(named["nth"] or 0) if named else 0) if is_mask else None


def class_of(inside: Path, organ: Organ, root: Path) -> str:
    """The class whose folder an image lies in. Raise ValueError for a folder that is nearly named as a class."""
    for part in reversed(inside.parts[:-1]):
        if organ.classes and (organ.find(part) or organ.near(part)):
            return organ.class_of(part, f"{root / inside}, its folder")
    return UNKNOWN


def notes_of(root: Path, records: Sequence[Record], organ: Organ) -> list[str]:
    """What a user should know of how these were read."""
    bare = sum(record.prompt == ANY.prompt(UNKNOWN) for record in records)
    unnamed = sum(record.label == UNKNOWN for record in records) if organ.classes else 0
    folders = {part for record in records for part in record.image.relative_to(root).parts[:-1]}
    repeats = ", ".join(sorted(part for part in folders if REPEATS.fullmatch(part)))
    told = {
        f"{bare} images have the prompt {ANY.prompt(UNKNOWN)!r}: a template in {DESCRIPTION}, or a .txt beside each, "
        "says more": bare,
        f"{unnamed} images lie in no folder of a class, and have none": unnamed,
        f"repeats of kohya's folders are not read ({repeats}): give several --data with shares": repeats,
    }
    return [sentence for sentence, found in told.items() if found]
