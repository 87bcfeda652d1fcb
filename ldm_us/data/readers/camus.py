"""Read CAMUS, echocardiography of 500 patients.   Leclerc et al., IEEE Trans. Med. Imaging 38(9) (2019) 2198.

Layout: patient0001/patient0001_2CH_ED.nii.gz (or `.mhd` with its `.raw`) and patient0001_2CH_ED_gt.nii.gz: two
views, of two and four chambers (2CH, 4CH), at end diastole and end systole (ED, ES). The class is view and phase, a
patient is a group, and the levels of a mask are three structures. Sequences of frames are not read. Extra `medical`.
"""

from itertools import product
from pathlib import Path

from ldm_us.data.medical import pixels_of
from ldm_us.data.organ import Organ, organ_of
from ldm_us.data.readers.imagefolder import of_scanners
from ldm_us.data.records import Record
from ldm_us.data.structure import Structure

VIEWS, PHASES, SUFFIXES = ("2CH", "4CH"), ("ED", "ES"), (".nii.gz", ".mhd", ".nii")
STRUCTURES = ("left ventricle", "myocardium", "left atrium")  # levels 1, 2 and 3
CLASSES = tuple(map(" ".join, product(VIEWS, PHASES)))
CAMUS = Organ("Ultrasound image of a heart, {label}, from CAMUS", CLASSES, (), structures=STRUCTURES)


def list_frames(root: Path) -> list[tuple[Path, str]]:
    """List the frames that were drawn on, with their class; of a frame in two formats the first of SUFFIXES."""
    frames = []
    for folder, view, phase in product(sorted(root.glob("patient[0-9]*")), VIEWS, PHASES):
        paths = [folder / f"{folder.name}_{view}_{phase}{suffix}" for suffix in SUFFIXES]
        frames += [(path, f"{view} {phase}") for path in paths if path.is_file()][:1]
    return frames


def read_camus(root: Path, notes: list[str]) -> list[Record]:
    """List the records by patient, view and phase. Reads the headers of the images, for the millimetres of a pixel."""
    organ, records = organ_of(root, CAMUS), []
    for path, name in list_frames(root):
        stem, _, suffix = path.name.partition(".")
        mask = path.with_name(f"{stem}_gt.{suffix}")
        if not mask.is_file():
            raise ValueError(f"{mask} is missing, the structures of {path.name}. Add it, or remove the image.")
        levels = enumerate(STRUCTURES, start=1)
        masks = tuple(Structure(pixels_of(mask), f"level {level}, {one}", levels=(level,)) for level, one in levels)
        label, group = organ.class_of(name, str(path)), f"camus:{path.parent.name}"
        records.append(Record(pixels_of(path), masks, label, organ.prompt(label), group, organ, STRUCTURES))
    if left := len(list(root.glob("patient[0-9]*/*half_sequence*"))):
        notes.append(f"sequences are not read, single frames are: {left} files")
    return of_scanners(records, notes)
