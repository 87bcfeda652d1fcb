"""Files and folders that are whole or not there: written under a temporary name, synced to disk, then renamed."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block ends, and leaves no trace if it fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk does not say which file it stopped
        raise
    sync_folder(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write a file of text in UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_folder(path: Path | str, unfinished: Path | None = None) -> Iterator[Path]:
    """Give an empty folder to fill that takes the place of `path` when the block ends, and leaves no trace if it fails.

    Its files are to be written with atomic_file. `unfinished` names that folder, beside `path`: what an earlier attempt
    left there is in it, and a failure leaves it for the next. A folder that is replaced is moved aside first, then
    deleted: no call of every system swaps two folders, so a kill between the two moves leaves it under the name
    .NAME.*.old.tmp.
    """
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    temporary = unfinished or path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir(exist_ok=unfinished is not None)
    try:
        yield temporary
        for folder in (temporary, *(inner for inner in temporary.rglob("*") if inner.is_dir())):
            sync_folder(folder)
        _move_folder(temporary, path)
    except BaseException as error:
        if unfinished is None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and str(temporary) in str(error.filename):
            error.filename = str(error.filename).replace(str(temporary), str(path))
        raise
    sync_folder(path.parent)


def _move_folder(source: Path, target: Path) -> None:
    if not target.exists():
        os.replace(source, target)
        return
    old = source.with_suffix(".old.tmp")
    os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)


@contextmanager
def full_disk_is_an_error_of_input(path: Path | str) -> Iterator[None]:
    """Turn the error of a full disk, or of a used up quota, into a ValueError that says what to do about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"{path}: the disk is full; nothing was written. Free space or choose another folder."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder, such as a rename just done, survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
