"""What lies in the folder of a dataset and is used by no record, by kind: more than a few pictures are a wrong reading.

A reader goes by names, so one that is spelled otherwise is an image or a mask less. Left out on purpose, and never too
many, are BrEaST's masks of other findings, and what ldm_us itself puts beside phantoms and samples.
"""

import os
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from ldm_us.data.medical import DICOM
from ldm_us.data.opening import IMAGE_SUFFIXES
from ldm_us.data.readers.busi import NAME
from ldm_us.data.records import Record
from ldm_us.data.structure import file_of

PICTURES = (*IMAGE_SUFFIXES, *DICOM)
TEXTS = {
    "",
    ".csv",
    ".xlsx",
    ".xls",
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".pdf",
    ".part",
    ".xml",
    ".cfg",
    ".mhd",
}  # tables, licences, notes
OTHER_FINDINGS, MADE, NO_PICTURES = "masks of other findings", "made by ldm_us beside the images", "not pictures"
UNLISTED, UNLISTED_MASKS = "pictures that no line names", "masks that no line names"  # of LISTED layouts
LISTED = ("imagefolder", "COCO")  # whose lines choose among the images
ON_PURPOSE = (OTHER_FINDINGS, MADE, NO_PICTURES, UNLISTED)
MADE_NAMES = ("overview.png", "grid.png", "strips")  # beside phantoms; beside samples
FEW, SHARE = 2, 0.05  # pictures, and share of the images, that may be other than they should; the larger one counts
SHOWN = 3  # names of a kind in a sentence
MASK_WORD = re.compile(r"[ _-]*(?<![a-z])(?:masks?|m)(?![a-z])[ _-]*(?:(?<=_)\d{1,2}$)?", re.IGNORECASE)


def list_left_out(root: Path, layout: str, records: Sequence[Record]) -> dict[str, list[Path]]:
    """Sort the files below `root` that no record uses by kind; tables, texts and hidden files are of none."""
    used = {path for record in records for path in (record.image, *map(file_of, record.masks))}
    files = [path for path in files_below(root) if path not in used and path.suffix.lower() not in TEXTS]
    stems = {(path.parent, path.stem.lower()) for path in (*used, *files)}
    listed, masked = {record.image.stem for record in records}, any(record.masks for record in records)
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kind = kind_of(path, root, layout, stems)
        if layout in LISTED and kind not in ON_PURPOSE:
            wanted = not masked or MASK_WORD.sub("", path.stem) in listed
            kind = UNLISTED_MASKS if wanted and MASK_WORD.search(path.relative_to(root).as_posix()) else UNLISTED
        kinds.setdefault(kind, []).append(path)
    return kinds


def files_below(root: Path) -> Iterator[Path]:
    """List every file below a folder by name, in linked folders too; hidden ones and those of macOS are left out."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        known = os.path.realpath(folder) in seen  # a link to a folder above it
        seen.add(os.path.realpath(folder))
        folders[:] = [] if known else sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(folder, name) for name in sorted(names) if not known and not name.startswith("."))


def kind_of(path: Path, root: Path, layout: str, stems: AbstractSet[tuple[Path, str]]) -> str:
    """Say what kind of file is left out: why, or else its suffix and folder. stems: of all files, by folder."""
    inside = path.relative_to(root)
    if path.suffix.lower() not in PICTURES:
        return NO_PICTURES
    if not path.exists():
        return "links to files that are gone"
    if inside.parts[0] in MADE_NAMES:
        return MADE
    if layout == "BrEaST" and "_other" in path.stem:
        return OTHER_FINDINGS
    name = NAME.fullmatch(path.name) if layout == "BUSI" else None
    of_class = name is not None and name["label"].lower() == path.parent.name.lower()
    if name is not None and name["mask"] and of_class and (path.parent, name["stem"].lower()) not in stems:
        return "masks whose image is missing"
    return f"{path.suffix} in {(Path(root.resolve().name) / inside.parent).as_posix()}/"


def too_many(left_out: dict[str, list[Path]], images: int) -> bool:
    """Say whether more pictures are left out than a reading of so many images may leave."""
    return more_than_a_few(sum(len(paths) for kind, paths in left_out.items() if kind not in ON_PURPOSE), images)


def more_than_a_few(count: int, images: int) -> bool:
    """Say whether so many of the images are a wrong reading, and not an exception."""
    return count > max(FEW, SHARE * images)


def describe_left_out(left_out: dict[str, list[Path]]) -> list[str]:
    """Write each kind with its number of files and the first names: '.png in BUSI/cyst/: 12 (cyst (1).png, ...)'."""
    return [
        f"{kind}: {len(paths)} ({', '.join(path.name for path in paths[:SHOWN])}{', ...' * (len(paths) > SHOWN)})"
        for kind, paths in left_out.items()
    ]
