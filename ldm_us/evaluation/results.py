"""The files that a command leaves in --out: looked for before the work, and each written whole after it."""

from collections.abc import Sequence
from pathlib import Path

from ldm_us.files.atomic import atomic_file


def check_out(out: Path | None, names: Sequence[str], overwrite: bool) -> None:
    """Raise ValueError where --out is no folder, or has one of the files that would be replaced."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"--out {out}: is not a folder. Choose another name.")
    found = [name for name in names if (out / name).exists()]
    if found and not overwrite:
        raise ValueError(f"--out {out}: has {found[0]} already. Choose another folder, or add --overwrite.")


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())
