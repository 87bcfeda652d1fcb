"""Read a dataset of any known layout; which one it is shows in what lies in the folder."""

from pathlib import Path

from ldm_us.data.readers.breast import is_breast, read_breast
from ldm_us.data.readers.bus_uclm import is_bus_uclm, read_bus_uclm
from ldm_us.data.readers.busbra import is_busbra, read_busbra
from ldm_us.data.readers.busi import is_busi, read_busi
from ldm_us.data.readers.dataset_b import is_dataset_b, read_dataset_b
from ldm_us.data.readers.imagefolder import is_imagefolder, read_imagefolder
from ldm_us.data.records import Record

KNOWN = (
    "BUSI (folders benign, malignant, normal), BUS-BRA (bus_data.csv, Images, Masks), dataset B (original, GT and a "
    "table, or numbered images in benign, malignant), BrEaST (case001.png ..., a table), BUS-UCLM (images, masks) or "
    "images with metadata.jsonl or metadata.csv"
)
LAYOUTS = {  # how each shows, and what reads it; metadata say what a folder is over everything else
    "imagefolder": (is_imagefolder, read_imagefolder),
    "BUS-BRA": (is_busbra, read_busbra),
    "dataset B": (is_dataset_b, read_dataset_b),
    "BrEaST": (is_breast, read_breast),
    "BUS-UCLM": (is_bus_uclm, read_bus_uclm),
    "BUSI": (is_busi, read_busi),
}


def read_dataset(folder: Path) -> list[Record]:
    """List the records of the dataset in `folder`, or in the only folder in it that holds one.

    ValueError: there is no such folder, no known layout in it or more than one, or the reader refuses what it finds.
    """
    root, layout = find_dataset(folder)
    _, read = LAYOUTS[layout]
    return read(root)


def layout_of(root: Path) -> str | None:
    """Name the layout of the files in this folder; None where it is not known."""
    return next((name for name, (lies_in, _) in LAYOUTS.items() if lies_in(root)), None)


def find_dataset(folder: Path) -> tuple[Path, str]:
    """Find the folder that holds the files and the name of its layout: `folder`, or the only one in it that fits."""
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}. Give the folder of a dataset.")
    layout = layout_of(folder)
    if layout is not None:
        return folder, layout
    inside = sorted(folder.iterdir())
    found = [(path, layout) for path in inside if path.is_dir() and (layout := layout_of(path)) is not None]
    if len(found) > 1:
        names = ", ".join(f"{path.name} ({layout})" for path, layout in found)
        raise ValueError(f"{folder} holds several datasets: {names}. Give each of these folders by itself.")
    if not found:
        names = ", ".join(path.name + "/" * path.is_dir() for path in inside[:5]) or "nothing"
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        raise ValueError(f"{folder} is not {KNOWN}: it holds {names}{more}. Give a folder with one of these layouts.")
    return found[0]
