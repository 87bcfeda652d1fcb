"""Advisory locks on files: held until they are closed, or their process ends, however it ends.

A file to be locked is opened for writing: on NFS a lock for one holder alone is refused to whoever may only read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes out of one folder
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"  # of the empty file in a folder that stands for the folder; it stays, for deleting it would let two in


def try_exclusive(file: IO[bytes]) -> bool:
    """Take the lock for this holder alone, without waiting; -> whether nobody else had it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def take_exclusive(file: IO[bytes]) -> None:
    """Take the lock for this holder alone; wait for those that have it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)


def take_shared(file: IO[bytes]) -> None:
    """Take the lock beside others that share it; wait for one that has it alone."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_SH)


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder that exists, for this process alone. Raise ValueError, saying `refusal`, where another has it."""
    with open(folder / NAME, "ab") as file:
        if not try_exclusive(file):
            raise ValueError(refusal)
        yield
