"""A tensor that lies somewhere in a file: described without being read, and read without being mapped.

A file that shrinks while it is mapped into memory kills the process with SIGBUS; one that is read gives too few bytes.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

MAX_AXES = 16
DESCRIPTION_LIMIT = 1 << 24  # bytes of a header, a pickle or a list of entries; those of SD 1.5 have some 200 KB
NAME_LIMIT = 500  # characters of a tensor's name


@dataclass
class Storage:
    """A row of numbers in a file: first what the file says of them, then where they lie."""

    key: str  # its name in a pickle
    dtype: torch.dtype
    elements: int
    path: Path = Path()
    begin: int = 0  # the first of its bytes
    crc32: int | None = None  # of the bytes, where the format says it

    @property
    def size(self) -> int:
        """In bytes."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor within a storage; offset and strides count elements."""

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def read(self) -> Tensor:
        """The tensor in memory. Raise ValueError if the file has shrunk, or its bytes have changed."""
        path, dtype, crc32 = self.storage.path, self.storage.dtype, self.storage.crc32
        count = span(self.shape, self.stride) * dtype.itemsize
        content = torch.empty(count, dtype=torch.uint8)
        if count:
            with path.open("rb") as file:
                file.seek(self.storage.begin + self.offset * dtype.itemsize)
                got = file.readinto(content.numpy().data)
            if got != count:
                raise ValueError(f"{path}: the file was cut short while it was read. Download or copy it again.")
            whole = count == self.storage.size
            if whole and crc32 is not None and crc32 != zlib.crc32(content.numpy().data):
                raise ValueError(
                    f"{path}: numbers in it do not match their checksum (CRC-32). Download or copy it again."
                )
        return content.view(dtype).as_strided(self.shape, self.stride)


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps, the last axis first."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def check_shape(shape: object) -> tuple[int, ...]:
    """The sizes of a tensor's axes, or its strides. Refuse what no tensor has."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_AXES:
        raise ValueError(f"a tensor has a shape that is no list, or has more than {MAX_AXES} axes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a tensor has a shape that is no list of natural numbers")
    if math.prod(max(size, 1) for size in shape) >= 1 << 63:
        raise ValueError("a tensor has a shape larger than any memory")
    return tuple(shape)


def check_name(name: object) -> None:
    """Refuse a name of a tensor that could not be shown in one line."""
    if not isinstance(name, str):
        raise ValueError(f"a tensor is named by a {type(name).__name__}, not by a text")
    if len(name) > NAME_LIMIT or not name.isprintable():
        raise ValueError(f"a tensor has a name of {len(name)} characters that cannot be shown ({shown(name)})")


def shown(text: str, limit: int = 200) -> str:
    """A text of a file as an error may quote it: short, in one line, without control characters."""
    printable = "".join(character if character.isprintable() else "?" for character in text[:limit])
    return printable + ("..." if len(text) > limit else "")
