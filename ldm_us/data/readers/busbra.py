"""Read BUS-BRA, 1,875 breast ultrasound images of 1,064 patients.   Gomez-Flores et al., Med Phys 51(4) (2024) 3110.

Layout: `bus_data.csv` (ID, Case, Pathology, ...), `Images/bus_0001-l.png`, `Masks/mask_0001-l.png`. A case is a
patient, whose images (left and right, or a single one) are one group.
"""

from pathlib import Path

from ldm_us.data.readers.tables import check_once, class_of, file_in, read_table
from ldm_us.data.records import Record

PROMPT = "Ultrasound image of a {label} breast, from BUS-BRA"  # our choice: the paper's, and where it is from
TABLE = "bus_data.csv"


def is_busbra(root: Path) -> bool:
    """Say whether BUS-BRA lies in this folder."""
    return (root / TABLE).is_file() or any((root / "Images").glob("bus_*.png"))


def read_busbra(root: Path) -> list[Record]:
    """List the records of BUS-BRA in the order of its table; every image has one mask."""
    if not (root / TABLE).is_file():
        raise ValueError(f"{root} holds no {TABLE}, which names classes and patients. Copy it from BUS-BRA.")
    rows = read_table(root / TABLE, ("ID", "Case", "Pathology"))
    check_once([row.cells["ID"] for row in rows], [row.where for row in rows])
    records = []
    for row in rows:
        name, case = row.cells["ID"], row.cells["Case"]
        if not case:
            raise ValueError(f"{row.where}: {name!r} has no Case, which says whose image it is. Fill it in.")
        label = class_of(row.cells["Pathology"], row.where)
        image = file_in(root, f"Images/{name}.png", row.where)
        mask = file_in(root, f"Masks/{name.replace('bus', 'mask', 1)}.png", row.where)
        records.append(Record(image, (mask,), label, PROMPT.format(label=label), f"bus-bra:{case}"))
    return records
