"""Where a result goes: refused before any work if it cannot be written, or must not be because it is what is read."""

import os
from collections.abc import Iterable
from pathlib import Path


def check_result_file(
    out: Path, ending: str, overwrite: bool, inputs: Iterable[Path] = (), option: str = "--out"
) -> None:
    """Refuse a file that exists, is a folder, has another ending, lies nowhere, or is one of the files to be read."""
    if out.is_dir():
        raise ValueError(f"{out}: {option} is a folder. Name a file in it, such as {out / f'model{ending}'}.")
    _check_place(out, "file", overwrite, inputs, option)
    if out.suffix != ending:
        raise ValueError(f"{out}: the result is a {ending} file. Let {option} end so.")


def check_result_folder(out: Path, overwrite: bool, written: Iterable[str], inputs: Iterable[Path] = ()) -> None:
    """Refuse a folder that exists, holds more than the files `written` there, or holds what is to be read."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: --out is a file. Name a folder that is to be made.")
    _check_place(out, "folder", overwrite, inputs, "--out")
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    foreign = sorted(there - set(written))
    if foreign:
        raise ValueError(
            f"{out}: holds {foreign[0]}, which no export wrote and --overwrite would delete. Choose another --out."
        )


def _check_place(out: Path, kind: str, overwrite: bool, inputs: Iterable[Path], option: str) -> None:
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: the {kind} exists. Add --overwrite to replace it, or choose another {option}.")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}. Create it first.")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"{out}: the folder {out.parent} cannot be written to. Choose another {option}.")
    place = out.resolve()
    for path in inputs if place.exists() else ():
        read = path.resolve()
        if place == read or place in read.parents or read in place.parents:  # the file, or a folder around one of both
            raise ValueError(f"{out}: {option} would overwrite {path}, which is read. Choose another {option}.")
