"""Read BrEaST (Breast-Lesions-USG), 256 breast ultrasound images.   Pawlowska et al., Scientific Data 11 (2024) 148.

Layout: `case001.png`, `case001_tumor.png`, `case001_other1.png` and the dataset's spreadsheet beside them (.xlsx, or
saved as .csv) with the columns CaseID, Image_filename, Mask_tumor_filename and Classification. The class is that of the
tumour, so its mask alone is the lesion, and the masks of other findings are not read. A case is a group.
"""

from pathlib import Path

from ldm_us.data.readers.tables import check_once, class_of, file_in, find_table, read_table
from ldm_us.data.records import LESION_CLASSES, Record

# Our choice: the paper's, and where it is from, by the archive's name, since CLIP would read BrEaST as "breast".
PROMPT = "Ultrasound image of a {label} breast, from Breast-Lesions-USG"
COLUMNS = ("CaseID", "Image_filename", "Mask_tumor_filename", "Classification")


def is_breast(root: Path) -> bool:
    """Say whether BrEaST lies in this folder."""
    return any(root.glob("case[0-9][0-9][0-9].png"))


def read_breast(root: Path) -> list[Record]:
    """List the records of BrEaST in the order of its table; a case without a tumour mask is kept with no masks."""
    rows = read_table(find_table(root), COLUMNS)
    check_once([row.cells["Image_filename"] for row in rows], [row.where for row in rows])
    records = []
    for row in rows:
        case, name, mask, word = (row.cells[column] for column in COLUMNS)
        if not case:
            raise ValueError(f"{row.where}: {name!r} has no CaseID, which says whose image it is. Fill it in.")
        label = class_of(word, row.where)
        image = file_in(root, name, row.where)
        masks = (file_in(root, mask, row.where),) if mask and label in LESION_CLASSES else ()
        records.append(Record(image, masks, label, PROMPT.format(label=label), f"breast:{case}"))
    return records
