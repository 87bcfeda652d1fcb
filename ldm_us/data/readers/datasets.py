"""Read a dataset of any known layout; which one it is shows in what lies in the folder."""

from pathlib import Path

from ldm_us.data.readers.bus_uclm import list_images, read_bus_uclm
from ldm_us.data.readers.busi import check_folder, is_busi, names_in, read_busi
from ldm_us.data.readers.imagefolder import CSV, JSONL, read_imagefolder
from ldm_us.data.readers.tabled import BUSBRA_TABLE, list_sorted, read_breast, read_busbra, read_dataset_b
from ldm_us.data.records import Record

KNOWN = (
    "BUSI (folders benign, malignant, normal), BUS-BRA (bus_data.csv, Images, Masks), dataset B (original, GT and a "
    "table, or numbered images in benign, malignant), BrEaST (case001.png ..., a table), BUS-UCLM (images, masks) or "
    "images with metadata.jsonl or metadata.csv"
)
READERS = {
    "imagefolder": read_imagefolder,
    "BUS-BRA": read_busbra,
    "dataset B": read_dataset_b,
    "BrEaST": read_breast,
    "BUS-UCLM": read_bus_uclm,
    "BUSI": read_busi,
}


def read_dataset(folder: Path) -> list[Record]:
    """List the records of the dataset in `folder`, or in the only folder in it that holds one.

    ValueError: there is no such folder, no known layout in it or more than one, or the reader refuses what it finds.
    """
    root, layout = find_dataset(folder)
    return READERS[layout](root)


def layout_of(root: Path) -> str | None:
    """Name the layout of the files in this folder, of READERS; None where it is not known."""
    if (root / JSONL).is_file() or (root / CSV).is_file():  # metadata say what a folder is over everything else
        return "imagefolder"
    if (root / BUSBRA_TABLE).is_file() or any((root / "Images").glob("bus_*.png")):
        return "BUS-BRA"
    if ((root / "original").is_dir() and (root / "GT").is_dir()) or list_sorted(root):
        return "dataset B"
    if any(root.glob("case[0-9][0-9][0-9].png")):
        return "BrEaST"
    if (root / "masks").is_dir() and list_images(root):
        return "BUS-UCLM"
    return "BUSI" if is_busi(root) else None


def find_dataset(folder: Path) -> tuple[Path, str]:
    """Find the folder that holds the files and the name of its layout: `folder`, or the only one in it that fits."""
    folder = Path(folder)
    check_folder(folder)
    layout = layout_of(folder)
    if layout is not None:
        return folder, layout
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [(path, layout) for path in inside if (layout := layout_of(path)) is not None]
    if len(found) > 1:
        names = ", ".join(f"{path.name} ({layout})" for path, layout in found)
        raise ValueError(f"{folder} holds several datasets: {names}. Give each of these folders by itself.")
    if not found:
        raise ValueError(
            f"{folder} is not {KNOWN}: it holds {names_in(folder)}. Give a folder with one of these layouts."
        )
    return found[0]
