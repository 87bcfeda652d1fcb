"""Advisory locks on files and folders: held until they are closed, or their process ends, however it ends."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes out of one folder
    fcntl = None  # type: ignore[assignment]


def try_exclusive(file: int | IO[bytes]) -> bool:
    """Take the lock for this holder alone, without waiting; -> whether nobody else had it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def take_shared(file: int | IO[bytes]) -> None:
    """Take the lock beside others that share it; wait for one that has it alone."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_SH)
