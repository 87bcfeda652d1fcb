"""Rows of bytes, all of one size, found by their keys in one file that every process maps and none holds a copy of.

NAME.rows holds the rows, and NAME.keys a header and a hash of each row's key, in the same order. A row is on disk
before its key is written: a process that is killed in between leaves nothing that is found. Nothing is changed or moved
later, so what one process has mapped stays right while another adds to it.
"""

import errno
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_us.files.locks import take_exclusive

HEADER, KEY = 32, 16  # bytes, of hashes
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
Bytes = NDArray[np.uint8]


class Rows:
    """The rows (n, size) of one file, or of this process alone where there is no path."""

    def __init__(self, path: Path | None, size: int, made_by: str = ""):
        """made_by: what the values depend on beside their keys. Raise ValueError for a file of another maker."""
        self.path, self.size = path, size
        self.header = hashlib.sha256(f"{made_by} {size}".encode()).digest()
        self.names = np.empty(0, f"S{KEY}")
        self.rows: Bytes = np.empty((0, size), np.uint8)
        self.added: list[tuple[NDArray[np.bytes_], Bytes]] = []  # without a path
        self.refused: OSError | None = None  # where the file turned out to be for reading alone
        self.load()

    def load(self) -> None:
        """Map what is there now, of other processes too."""
        if self.path is None:
            self.names = np.concatenate([self.names, *(names for names, _ in self.added)])
            self.rows = np.concatenate([self.rows, *(rows for _, rows in self.added)])
            self.added = []
        elif self.path.with_suffix(".keys").exists():
            written = self.path.with_suffix(".keys").read_bytes()
            if len(written) >= HEADER and written[:HEADER] != self.header:
                raise ValueError(
                    f"{self.path.parent}: holds values of other weights than its name says. Delete the folder; they "
                    "are computed again."
                )
            count = self.count(len(written))
            self.names = np.frombuffer(written[HEADER : HEADER + count * KEY], f"S{KEY}")
            if count:
                self.rows = np.memmap(self.path.with_suffix(".rows"), np.uint8, "r", shape=(count, self.size))
        self.order = np.argsort(self.names, kind="stable")

    def count(self, length: int) -> int:
        """How many rows are whole, where the file of keys has this length."""
        assert self.path is not None
        path = self.path.with_suffix(".rows")
        return min(max(0, length - HEADER) // KEY, path.stat().st_size // self.size if path.exists() else 0)

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key (n,), -1 where there is none."""
        if len(self.names) == 0:
            return np.full(len(keys), -1)
        wanted = names_of(keys)
        places = self.order[np.searchsorted(self.names, wanted, sorter=self.order).clip(max=len(self.names) - 1)]
        return np.where(self.names[places] == wanted, places, -1)

    def add(self, keys: Sequence[str], rows: Bytes) -> None:
        """Write rows (n, size) behind those of all processes; load() finds them. Where none may write: keep them."""
        if self.path is None:
            self.added.append((names_of(keys), rows))
            return
        path = self.path.with_suffix(".rows")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_suffix(".keys"), "ab") as names, open(path, "ab"):
                take_exclusive(names)
                length = os.fstat(names.fileno()).st_size
                count = self.count(length)
                start = HEADER + count * KEY if length >= HEADER else 0
                names.truncate(start)  # of what is damaged: no key may stand before its row does
                write_at(path, count * self.size, rows.tobytes())
                write_at(Path(names.name), start, self.header * (start == 0) + names_of(keys).tobytes())
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk does not say which file it stopped
            if error.errno not in READ_ONLY:
                raise
            self.refused, self.path = error, None
            self.add(keys, rows)


def as_tensor(mapped: NDArray[Any]) -> Tensor:
    """A tensor on the same memory, to be read only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(mapped))


def names_of(keys: Sequence[str]) -> NDArray[np.bytes_]:
    """The hash of each key, as the file has it."""
    return np.frombuffer(b"".join(hashlib.sha256(key.encode()).digest()[:KEY] for key in keys), f"S{KEY}")


def write_at(path: Path, start: int, data: bytes) -> None:
    """Write bytes from this place on, and to the disk."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
