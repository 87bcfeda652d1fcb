"""Read dataset B (UDIAT), 163 breast ultrasound images with one lesion each.   Yap et al., IEEE JBHI 22(4) (2018) 1218.

Two layouts are in use, with masks of the same name in `GT`:

- as given by the authors: `original/000001.png`, and a table (.csv, or the .xlsx) with the columns Image and Type;
- sorted by class: `benign/000001.png`, `malignant/000002.png`, where `GT` may be missing (no masks).

Nothing says which images are of one patient: each image is a group.
"""

import re
from pathlib import Path

from ldm_us.data.readers.tables import check_once, class_of, file_in, find_table, read_table
from ldm_us.data.records import LESION_CLASSES, Record

PROMPT = "Ultrasound image of a {label} breast, from dataset B"  # our choice: the paper's, and where it is from
NAME = re.compile(r"\d+\.png")


def is_dataset_b(root: Path) -> bool:
    """Say whether dataset B lies in this folder."""
    return ((root / "original").is_dir() and (root / "GT").is_dir()) or bool(list_sorted(root))


def list_sorted(root: Path) -> list[tuple[Path, str]]:
    """List images and classes of the sorted layout."""
    return [
        (path, label)
        for label in LESION_CLASSES
        if (root / label).is_dir()
        for path in sorted((root / label).iterdir())
        if NAME.fullmatch(path.name) and path.is_file()
    ]


def read_dataset_b(root: Path) -> list[Record]:
    """List the records of dataset B; in the authors' layout the order is that of the table."""
    pairs = list_sorted(root) or list_original(root)
    check_once([path.name for path, _ in pairs], [str(path) for path, _ in pairs])
    masked = (root / "GT").is_dir()
    records = []
    for image, label in pairs:
        mask = root / "GT" / image.name
        if masked and not mask.is_file():
            raise ValueError(f"{mask} is missing, the mask of {image}. Add it, or remove the image.")
        records.append(
            Record(image, (mask,) if masked else (), label, PROMPT.format(label=label), f"dataset-b:{image.stem}")
        )
    return records


def list_original(root: Path) -> list[tuple[Path, str]]:
    """List images and classes of the authors' layout; a table may write 1 or 000001 or 000001.png."""
    rows = read_table(find_table(root), ("Image", "Type"))
    names = [row.cells["Image"].removesuffix(".png").zfill(6) + ".png" for row in rows]
    check_once(names, [row.where for row in rows])
    return [
        (file_in(root / "original", name, row.where), class_of(row.cells["Type"], row.where))
        for name, row in zip(names, rows, strict=True)
    ]
