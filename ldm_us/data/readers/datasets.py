"""Read a dataset of any known layout; which one it is shows in what lies in the folder."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_us.data.organ import DESCRIPTION
from ldm_us.data.readers.bus_uclm import list_images, read_bus_uclm
from ldm_us.data.readers.busi import check_folder, is_busi, names_in, read_busi
from ldm_us.data.readers.camus import list_frames, read_camus
from ldm_us.data.readers.coco import list_tables, read_coco
from ldm_us.data.readers.ddti import list_cases, read_ddti
from ldm_us.data.readers.imagefolder import CSV, JSONL, read_imagefolder
from ldm_us.data.readers.left_out import describe_left_out, list_left_out, too_many
from ldm_us.data.readers.plain import TN3K, has_captions, has_dicom, has_pairs, read_plain
from ldm_us.data.readers.tabled import BUSBRA_TABLE, list_sorted, read_breast, read_busbra, read_dataset_b
from ldm_us.data.records import Record, spacing_notes, structured

KNOWN = (
    "BUSI (folders benign, malignant, normal), BUS-BRA (bus_data.csv, Images, Masks), dataset B (original, GT and a "
    "table, or numbered images in benign, malignant), BrEaST (case001.png ..., a table), BUS-UCLM (images, masks), "
    "DDTI (1.xml, 1_1.jpg ...), TN3K (trainval-image, trainval-mask), CAMUS (patient0001 ...), COCO (a JSON of "
    "annotations), captions (a .txt beside each image), DICOM (.dcm), described (images with dataset.json) or "
    "images with metadata.jsonl or metadata.csv"
)
READERS: dict[str, Callable[[Path, list[str]], list[Record]]] = {  # the second argument takes notes
    "imagefolder": read_imagefolder,
    "BUS-BRA": read_busbra,
    "dataset B": read_dataset_b,
    "BrEaST": read_breast,
    "BUS-UCLM": lambda root, _: read_bus_uclm(root),
    "BUSI": lambda root, _: read_busi(root),
    "COCO": read_coco,
    "DDTI": read_ddti,
    "CAMUS": read_camus,
    "TN3K": lambda root, notes: read_plain(root, notes, TN3K),
    "captions": read_plain,
    "DICOM": read_plain,
    "described": read_plain,
}
OF_BREASTS = ("BUS-BRA", "dataset B", "BrEaST", "BUS-UCLM")


@dataclass(frozen=True)
class Reading:
    """A dataset as it was read, and what of its folder was not."""

    folder: Path  # as it was given
    root: Path  # the folder itself, or the one in it that holds the files
    layout: str  # of READERS
    records: list[Record]
    left_out: dict[str, list[Path]]  # by kind: files that no record uses
    notes: list[str]  # columns that were not read


def read_dataset(folder: Path) -> list[Record]:
    """List the records of the dataset in `folder`, or in the only folder in it that holds one.

    ValueError: there is no such folder, no known layout in it or more than one, the reader refuses what it finds, or it
    leaves out more than a few pictures.
    """
    return read_whole(folder).records


def read_whole(folder: Path) -> Reading:
    """Read the dataset in `folder` and list what is left out. ValueError as for read_dataset.

    Of the layouts that fit, the first is taken that leaves out a few pictures at most.
    """
    root, layouts = find_dataset(folder)
    readings, errors = [], []
    for layout in layouts:
        notes: list[str] = []
        try:
            records = [structured(record) for record in READERS[layout](root, notes)]
        except ValueError as error:
            errors.append(error)
            continue
        notes += spacing_notes(records)
        if layout in OF_BREASTS and (root / DESCRIPTION).is_file():
            notes.append(f"{DESCRIPTION} is not read: {layout} shows breasts")
        reading = Reading(Path(folder), root, layout, records, list_left_out(root, layout, records), notes)
        if not too_many(reading.left_out, len(records)):
            return reading
        readings.append(reading)
    if not readings:
        raise errors[0]
    listed = "; or ".join(
        f"as {one.layout}: {len(one.records)} images, without {', '.join(describe_left_out(one.left_out))}"
        for one in readings
    )
    if layouts == ["imagefolder"]:  # whose lines choose, so that nothing but masks can be too much
        raise ValueError(f"{root} would be read {listed}. Name them in a column mask, or move them away.")
    raise ValueError(
        f"{root} would be read {listed}. Name and place the files as this layout has them ({KNOWN}), or move away what "
        "does not belong to it."
    )


def read_folders(folders: Sequence[Path]) -> list[Reading]:
    """Read several datasets. ValueError: an image is in two of them, which are one, or one in the other."""
    readings = [read_whole(folder) for folder in folders]
    check_folders(folders, [reading.records for reading in readings])
    return readings


def read_datasets(folders: Sequence[Path]) -> list[Record]:
    """List the records of several datasets, one after the other. ValueError as for read_folders."""
    return records_of(read_folders(folders))


def records_of(readings: Sequence[Reading]) -> list[Record]:
    """List the records of datasets that are read, one after the other."""
    return [record for reading in readings for record in reading.records]


def hint_shown(readings: Sequence[Reading]) -> tuple[str, ...]:
    """What the masks of the datasets show. Raise ValueError where that is not the same."""
    hints = {record.organ.hint: reading.folder for reading in readings for record in reading.records[:1]}
    if len(hints) > 1:
        (one, folder), (other, another), *_ = hints.items()
        raise ValueError(
            f"--data: {folder} shows {', '.join(one)}, and {another} {', '.join(other)}. Describe both alike in "
            "dataset.json."
        )
    return next(iter(hints))


def check_folders(folders: Sequence[Path], sets: Sequence[Sequence[Record]]) -> None:
    """Refuse an image file that two of the folders hold, by whichever paths or links they lead to it."""
    holder: dict[str, int] = {}
    for nth, records in enumerate(sets):
        for record in records:
            first = holder.setdefault(os.path.realpath(record.image), nth)
            if first != nth:
                raise ValueError(
                    f"{folders[first]} and {folders[nth]} hold the same files ({record.image.name} among them). Give "
                    "each dataset once."
                )


def layouts_of(root: Path) -> list[str]:
    """Name the layouts, of READERS, that the files in this folder may have; metadata say it over everything else."""
    if (root / JSONL).is_file() or (root / CSV).is_file():
        return ["imagefolder"]
    fitting = {
        "BUS-BRA": (root / BUSBRA_TABLE).is_file() or any((root / "Images").glob("bus_*.png")),
        "dataset B": ((root / "original").is_dir() and (root / "GT").is_dir()) or bool(list_sorted(root)),
        "BrEaST": any(root.glob("case[0-9][0-9][0-9].png")),
        "BUS-UCLM": (root / "masks").is_dir() and bool(list_images(root)),
        "BUSI": is_busi(root),
        "COCO": bool(list_tables(root)),
        "DDTI": bool(list_cases(root)),
        "CAMUS": bool(list_frames(root)),
        "TN3K": has_pairs(root),
        "captions": has_captions(root),
        "DICOM": has_dicom(root),
    }
    found = [layout for layout, fits in fitting.items() if fits]
    return found or (["described"] if (root / DESCRIPTION).is_file() else [])


def find_dataset(folder: Path) -> tuple[Path, list[str]]:
    """Find the folder that holds the files and the layouts it may have: `folder`, or the only one in it that fits."""
    folder = Path(folder)
    check_folder(folder)
    layouts = layouts_of(folder)
    if layouts:
        return folder, layouts
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [(path, layouts) for path in inside if (layouts := layouts_of(path))]
    if len(found) > 1:
        names = ", ".join(f"{path.name} ({' or '.join(layouts)})" for path, layouts in found)
        raise ValueError(f"{folder} holds several datasets: {names}. Give each of these folders by itself.")
    if not found:
        raise ValueError(
            f"{folder} is not {KNOWN}: it holds {names_in(folder)}. Give a folder with one of these layouts."
        )
    return found[0]
