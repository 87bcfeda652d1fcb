"""Read BUS-UCLM, 683 breast ultrasound images of 38 patients.   Vallez et al., Scientific Data 12 (2025) 242.

Layout: `images/ALWI_000.png` and `masks/ALWI_000.png`, where a benign lesion is green, a malignant one red and the rest
black. The class of an image is the colour of its mask; an image with lesions of both colours is malignant, as a report
would name it, with both lesions in its mask. The first four letters of a name are the patient: a group.
"""

import re
from pathlib import Path

import numpy as np

from ldm_us.data.opening import open_mask
from ldm_us.data.records import Record

PROMPT = "Ultrasound image of a {label} breast, from BUS-UCLM"  # our choice: the paper's, and where it is from
NAME = re.compile(r"(?P<patient>[A-Z]{4})_\d+\.png")


def list_images(root: Path) -> list[Path]:
    """List the images by name."""
    return [path for path in sorted((root / "images").glob("*.png")) if NAME.fullmatch(path.name)]


def read_bus_uclm(root: Path) -> list[Record]:
    """List the records of BUS-UCLM by name. Opens every mask, since the class is in it alone."""
    records = []
    for image in list_images(root):
        mask = root / "masks" / image.name
        if not mask.is_file():
            raise ValueError(f"{mask} is missing, and with it the class of {image.name}. Add it, or remove the image.")
        lesions = lesions_of_mask(mask)
        label = "malignant" if "malignant" in lesions else "benign" if lesions else "normal"
        group = f"bus-uclm:{image.name[:4]}"
        records.append(Record(image, (mask,), label, PROMPT.format(label=label), group))
    return records


def lesions_of_mask(path: Path) -> set[str]:
    """Collect the classes of the lesions that a mask shows: malignant where any pixel is red, benign where green."""
    red, green, blue = np.moveaxis(np.asarray(open_mask(path).convert("RGB")), 2, 0) > 127
    if bool((blue | (red & green)).any()):
        raise ValueError(f"{path} has lesions that are neither red nor green, so their class is unknown. Replace it.")
    return {label for label, drawn in (("malignant", red), ("benign", green)) if bool(drawn.any())}
