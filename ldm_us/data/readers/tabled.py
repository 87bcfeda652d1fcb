"""Read the published sets whose classes stand in a table: BUS-BRA, BrEaST and dataset B.

BUS-BRA, 1,875 breast ultrasound images of 1,064 patients (Gomez-Flores et al., Med Phys 51(4) (2024) 3110):
`bus_data.csv` (ID, Case, Pathology, ...), `Images/bus_0001-l.png`, `Masks/mask_0001-l.png`. A case is a patient, whose
images (left and right, or a single one) are one group.

BrEaST (Breast-Lesions-USG), 256 breast ultrasound images (Pawlowska et al., Scientific Data 11 (2024) 148):
`case001.png`, `case001_tumor.png`, `case001_other1.png` and the dataset's spreadsheet beside them (.xlsx, or saved as
.csv) with the columns CaseID, Image_filename, Mask_tumor_filename and Classification. The class is that of the tumour,
so its mask alone is the lesion, and the masks of other findings are not read. A case is a group.

Dataset B (UDIAT), 163 breast ultrasound images with one lesion each (Yap et al., IEEE JBHI 22(4) (2018) 1218). Two
layouts are in use, with masks of the same name in `GT`:

- as given by the authors: `original/000001.png`, and a table (.csv, or the .xlsx) with the columns Image and Type;
- sorted by class: `benign/000001.png`, `malignant/000002.png`, where `GT` may be missing (no masks).

Nothing says which images are of one patient: each image is a group.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ldm_us.data.organ import BREAST
from ldm_us.data.readers.busi import class_folder
from ldm_us.data.readers.tables import Row, check_once, file_in, find_table, note_unread, read_table
from ldm_us.data.records import Record

# Our choice: the paper's prompt, and where the image is from. BrEaST goes by the archive's name, since CLIP would read
# it as "breast".
PROMPT = "Ultrasound image of a {label} breast, from {dataset}"
BUSBRA_TABLE = "bus_data.csv"
NUMBERED = re.compile(r"\d+\.png")


def read_busbra(root: Path, notes: list[str]) -> list[Record]:
    """List the records of BUS-BRA in the order of its table; every image has one mask."""
    if not (root / BUSBRA_TABLE).is_file():
        raise ValueError(f"{root} holds no {BUSBRA_TABLE}, which names classes and patients. Copy it from BUS-BRA.")
    records = []
    columns = ("ID", "Case", "Pathology")
    for where, cells in read_cases(root / BUSBRA_TABLE, columns, notes, image="ID", case="Case"):
        label = BREAST.class_of(cells["Pathology"], where)
        image = file_in(root, f"Images/{cells['ID']}.png", where)
        mask = file_in(root, f"Masks/{cells['ID'].replace('bus', 'mask', 1)}.png", where)
        prompt = PROMPT.format(label=label, dataset="BUS-BRA")
        records.append(Record(image, (mask,), label, prompt, f"bus-bra:{cells['Case']}"))
    return records


def read_breast(root: Path, notes: list[str]) -> list[Record]:
    """List the records of BrEaST in the order of its table; a case without a tumour mask is kept with no masks."""
    columns = ("CaseID", "Image_filename", "Mask_tumor_filename", "Classification")
    records = []
    for where, cells in read_cases(find_table(root), columns, notes, image="Image_filename", case="CaseID"):
        case, name, mask, word = (cells[column] for column in columns)
        label = BREAST.class_of(word, where)
        image = file_in(root, name, where)
        masks = (file_in(root, mask, where),) if mask and BREAST.shows(label) else ()
        prompt = PROMPT.format(label=label, dataset="Breast-Lesions-USG")
        records.append(Record(image, masks, label, prompt, f"breast:{case}"))
    return records


def read_cases(path: Path, columns: Sequence[str], notes: list[str], image: str, case: str) -> list[Row]:
    """Read a table with one row an image; `image` and `case` are the columns that name it and whose it is."""
    rows = read_table(path, columns)
    note_unread(path, rows[0][1], columns, notes)
    check_once([(cells[image], where) for where, cells in rows])
    for where, cells in rows:
        if not cells[case]:
            raise ValueError(f"{where}: {cells[image]!r} has no {case}, which says whose image it is. Fill it in.")
    return rows


def read_dataset_b(root: Path, notes: list[str]) -> list[Record]:
    """List the records of dataset B; in the authors' layout the order is that of the table."""
    listed = list_sorted(root) or list_original(root, notes)
    check_once([(image.name, where) for image, _, where in listed])
    masked = (root / "GT").is_dir()
    records = []
    for image, label, _ in listed:
        mask = root / "GT" / image.name
        if masked and not mask.is_file():
            raise ValueError(f"{mask} is missing, the mask of {image}. Add it, or remove the image.")
        prompt = PROMPT.format(label=label, dataset="dataset B")
        records.append(Record(image, (mask,) if masked else (), label, prompt, f"dataset-b:{image.stem}"))
    return records


def list_sorted(root: Path) -> list[tuple[Path, str, str]]:
    """List images, classes and where these are told, of the sorted layout, which has no normal images."""
    if class_folder(root, "normal") is not None:
        return []
    return [
        (path, label, str(path))
        for label in BREAST.classes
        for folder in [class_folder(root, label)]
        if folder is not None
        for path in sorted(folder.glob("*.png"))
        if NUMBERED.fullmatch(path.name) and path.is_file()
    ]


def list_original(root: Path, notes: list[str]) -> list[tuple[Path, str, str]]:
    """List the same of the authors' layout; its table may write 1 or 000001 or 000001.png."""
    listed, table, columns = [], find_table(root), ("Image", "Type")
    rows = read_table(table, columns)
    note_unread(table, rows[0][1], columns, notes)
    for where, cells in rows:
        name = cells["Image"].removesuffix(".png").zfill(6) + ".png"
        listed.append((file_in(root / "original", name, where), BREAST.class_of(cells["Type"], where), where))
    return listed
