"""The header of a .safetensors file, checked before the library sees the file.

The format: 8 bytes with the header's length, a JSON object {name: {"dtype", "shape", "data_offsets"}} with an optional
"__metadata__", then the numbers, without holes and overlaps (safetensors README, "Format"). The library refuses most of
what is wrong; here the size is bounded first, and names that occur twice or cannot be printed are refused too.
The metadata hold JSON themselves, such as a config, a lineage or the settings of a LoRA: parse_json reads it.
"""

import math
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm_us.files.json_values import parse_json
from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT, check_name, check_shape, shown

DTYPES = {  # the library's names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

TYPE_LIMIT = 16  # letters; the longest name of the format has 11


class HeaderEntry(NamedTuple):
    """One tensor: bytes begin..end of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """All that a file says of itself."""

    tensors: dict[str, HeaderEntry]
    metadata: dict[str, str]


def open_safetensors(path: Path | str) -> safe_open:
    """safe_open, after a check of the header. Raise SafetensorError or OSError."""
    read_header(path)
    return safe_open(path, framework="pt")


def read_tensors(path: Path | str, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors whose names begin with `prefix`, each read into memory of its own. Raise SafetensorError or OSError.

    The library maps a file, whose pages stay in memory beside the copies until it is closed: half as much again.
    """
    with _opened(path) as file:
        for name, entry in _header_of(file).tensors.items():
            if name.startswith(prefix):
                if entry.dtype not in DTYPES:
                    raise SafetensorError(f"{name} has the type {entry.dtype}, which is not read here")
                data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
                file.seek(entry.begin)
                if file.readinto(data.numpy().data) != len(data):
                    raise SafetensorError("it was cut short while it was read")
                yield name, data.view(DTYPES[entry.dtype]).view(entry.shape)


def read_header(path: Path | str) -> Header:
    """Read and check the header alone. Raise SafetensorError, which does not name the file, for anything wrong."""
    with _opened(path) as file:
        return _header_of(file)


def _opened(path: Path | str) -> BufferedReader:
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise SafetensorError("it is a folder, a device or a pipe")
    return open(path, "rb")


def _header_of(file: BufferedReader) -> Header:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise SafetensorError(f"cut short, or of another format: no header of {length} bytes in its {size} bytes")
    if length > DESCRIPTION_LIMIT:
        raise SafetensorError(f"its header has {length} bytes, more than the {DESCRIPTION_LIMIT} of any model")
    text = file.read(length)
    try:
        return _checked(parse_json(text), 8 + length, size)
    except ValueError as error:
        raise SafetensorError(f"its header is damaged: {shown(str(error))}") from error


def _checked(header: Any, begin: int, size: int) -> Header:
    if not isinstance(header, dict):
        raise ValueError("it is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not a map of texts")
    tensors = {name: _entry(name, value, begin) for name, value in header.items()}
    end = begin
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if entry.begin != end:
            raise ValueError(f"the numbers of {name} overlap others, or leave a hole")
        end = entry.end
    if end > size:
        raise SafetensorError(f"cut short: it describes {end} bytes, but the file has {size}")
    if end < size:
        raise SafetensorError(f"{size - end} bytes follow its last tensor, which belong to none: two files in one?")
    return Header(tensors, metadata)


def _entry(name: str, value: Any, begin: int) -> HeaderEntry:
    check_name(name)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], check_shape(value["shape"]), value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(offsets, list) or [type(end) for end in offsets] != [int, int]:
        raise ValueError(f"{name} has a dtype or data_offsets of a wrong kind")
    if len(dtype) > TYPE_LIMIT or not dtype.isprintable():
        raise ValueError(f"{name} has a type of {len(dtype)} characters that is none")
    first, last = offsets
    known = DTYPES.get(dtype)  # the length of another type is left to the library, or to who refuses that type
    if not 0 <= first <= last or (known is not None and last - first != math.prod(shape) * known.itemsize):
        raise ValueError(f"{name} has {last - first} bytes, which do not fit its type and shape")
    return HeaderEntry(shown(dtype), shape, begin + first, begin + last)
