"""The two files that torch.save has written: a ZIP archive since version 1.6, before it pickles one behind another.

Both hold a pickle that describes the tensors (pickle_program.py) and, beside it, their numbers, which stay on the disk.
read_weights gives the tensors of a stranger's file, stored_weights the same unread; no code of the file runs.
"""

import io
import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from torch import Tensor

from ldm_us.files.pickle_program import Name, RefusedPickleError, run_pickle
from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT, Storage, StoredTensor, check_name, shown

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of an old file: torch/serialization.py
LOCAL_HEADER = struct.Struct("<4s22x2H")  # of a ZIP entry: signature, ..., length of the name and of what follows it
DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, BadZipFile, EOFError, NotImplementedError, struct.error)
# Where trainers keep weights, one in another at times.
WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "ema")
NESTED = 3  # times
PARALLEL = "module."  # before every name, where DistributedDataParallel saved itself
COMPILED = "_orig_mod."  # in a name, where torch.compile's wrapper of a module saved itself


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a .pt, .pth, .ckpt or .bin file from anywhere, read into memory in the type that it has there.

    The file holds one flat dictionary of tensors, as `torch.save(model.state_dict(), path)` writes it (an OrderedDict
    and Parameters are read as a dictionary and tensors), or has one under a name of WRAPPERS. A "module." before every
    name is taken off. Raise ValueError, in one sentence that names the file, for anything else: a missing, cut or
    damaged file, a whole pickled model, a pickle that asks for more than weights need.
    """
    return {name: tensor.read() for name, tensor in stored_weights(path).items()}


def stored_weights(path: Path) -> dict[str, StoredTensor]:
    """read_weights without reading the numbers: each tensor's `read` does so, and shape and type are known before."""
    content = read_pickle_file(path)
    for _ in range(NESTED):
        inside = [
            content[name] for name in WRAPPERS if isinstance(content, dict) and isinstance(content.get(name), dict)
        ]
        content = inside[0] if inside else content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors. Give a checkpoint.")
    if "string_to_param" in content:
        raise ValueError(f"{path}: a textual inversion (`python -m weights_convert import --embedding` takes it).")
    if any(isinstance(value, StoredTensor) for value in content.values()):  # a step, the name of an architecture
        content = {name: value for name, value in content.items() if type(value) not in (int, str, type(None))}
    for name, value in content.items():
        if not isinstance(value, StoredTensor):
            kind = value.text if isinstance(value, Name) else type(value).__name__
            raise ValueError(
                f"{path}: entry {shown(str(name))!r} is a {kind}, not a tensor. Give a file with a "
                f"state dict, or with one under {', '.join(f'`{wrapper}`' for wrapper in WRAPPERS)}."
            )
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Nothing was read.") from error
    return without_wrappers(content)


def without_wrappers(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names they have without the wrappers of DistributedDataParallel and torch.compile."""
    named = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    if len(named) != len(tensors):
        return dict(tensors)  # both kinds of names in one file: they are refused as unknown, none is dropped
    if named and all(name.startswith(PARALLEL) for name in named):
        named = {name.removeprefix(PARALLEL): tensor for name, tensor in named.items()}
    return named


def read_pickle_file(path: Path) -> Any:
    """What a file holds: dictionaries, lists and plain values, and a StoredTensor for every tensor.

    Raise ValueError, in one sentence, for a file that is damaged, hostile, or shorter than its tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, or a device or a pipe. Check the path.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if head[257:262] == b"ustar":
                raise ValueError("a tar archive, as PyTorch wrote before version 0.1.10, which is not read here")
            content, storages = _read_zip(file) if head.startswith(b"PK") else _read_old(file)
        for storage in storages:
            storage.path, end = path, storage.begin + storage.size
            if end > size:
                raise ValueError(f"its numbers end at byte {end}, but the file has {size}")
        return content
    except RefusedPickleError as error:
        raise ValueError(
            f"{path}: refused: {error}, which weights do not need and which could run code. Nothing in it was run. "
            "Use a .safetensors version of the model."
        ) from error
    except DAMAGE as error:  # a damaged pickle can fail anywhere in its reader
        unchecked = ", or saved with torch's checksums turned off" if "CRC-32" in str(error) else ""
        reason = shown(str(error)) if isinstance(error, ValueError | BadZipFile) else "its pickle is damaged"
        raise ValueError(
            f"{path}: not a PyTorch checkpoint, or cut short ({reason}{unchecked}); nothing in it was run. "
            "Download or copy it again."
        ) from error


def _read_zip(file: BinaryIO) -> tuple[Any, list[Storage]]:
    with ZipFile(cast(BinaryIO, _Bounded(file))) as archive:
        entries = _check_entries(archive.infolist(), archive.start_dir)
        described = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(described) != 1:
            raise ValueError("a ZIP archive without a data.pkl")
        root = described[0].removesuffix("data.pkl")
        if entries[described[0]].file_size > DESCRIPTION_LIMIT:
            raise ValueError(f"its data.pkl has more than {DESCRIPTION_LIMIT} bytes")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers have the bytes of a big-endian machine")
        content, storages = run_pickle(io.BytesIO(archive.read(described[0])))
    for storage in storages:
        entry = entries[f"{root}data/{storage.key}"]
        _check_size(storage, entry.file_size)
        storage.begin, storage.crc32 = _begin(file, entry), entry.CRC
    return content, storages


class _Bounded:
    """A file of which zipfile reads no more than a list of entries takes."""

    def __init__(self, file: BinaryIO):
        self.file, self.tell, self.seekable = file, file.tell, file.seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:
            raise ValueError("its list of entries points to before the file")
        return self.file.seek(offset, whence)

    def read(self, count: int = -1) -> bytes:
        if count > DESCRIPTION_LIMIT:
            raise ValueError(f"its list of entries has {count} bytes")
        return self.file.read(DESCRIPTION_LIMIT if count < 0 else count)


def _check_entries(entries: Iterable[ZipInfo], end: int) -> dict[str, ZipInfo]:
    """Entries by name. Refuse compression, which torch.save never uses, and entries that overlap or do not end."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    if any(e.compress_type != ZIP_STORED or e.compress_size != e.file_size or e.flag_bits & 1 for e in ordered):
        raise ValueError("its entries are compressed or encrypted, which those of a checkpoint never are")
    if any(entry.header_offset < 0 for entry in ordered):
        raise ValueError("an entry begins before the file does")
    begins = [*(entry.header_offset for entry in ordered), end]
    room = [after - begin - LOCAL_HEADER.size for begin, after in pairwise(begins)]
    if any(entry.file_size > space for entry, space in zip(ordered, room, strict=True)):
        raise ValueError("its entries overlap, or reach beyond the end of the file")
    named = {entry.filename: entry for entry in ordered}
    if len(named) != len(ordered):
        raise ValueError("two of its entries have the same name")
    return named


def _begin(file: BinaryIO, entry: ZipInfo) -> int:
    file.seek(entry.header_offset)
    signature, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04" or file.read(name) != entry.orig_filename.encode():
        raise ValueError("an entry is not where the list of entries says")
    return int(entry.header_offset + LOCAL_HEADER.size + name + extra)


def _read_old(file: BinaryIO) -> tuple[Any, list[Storage]]:
    file.seek(0)
    head = io.BytesIO(file.read(DESCRIPTION_LIMIT))
    magic = run_pickle(head)[0]
    if magic != MAGIC or run_pickle(head)[0] != PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    system = run_pickle(head)[0]
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers have the bytes of a big-endian machine")
    content, storages = run_pickle(head)
    keys = run_pickle(head)[0]
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise ValueError("its list of storages is damaged")

    named = {storage.key: storage for storage in storages}
    begins, at = {}, head.tell()
    for key in keys:  # each: the number of elements in 8 bytes, then the elements
        file.seek(at)
        if int.from_bytes(file.read(8), "little") != named[key].elements:
            raise ValueError("its storages are not as long as it says")
        begins[key] = at + 8
        at += 8 + named[key].size
    for storage in storages:
        _check_size(storage, named[storage.key].size)
        storage.begin = begins[storage.key]
    return content, storages


def _check_size(storage: Storage, size: int) -> None:
    if storage.size != size:
        raise ValueError(f"{storage.elements} numbers are described, but {size} bytes are there for them")
