"""Files and folders of weights, opened lazily: names, shapes and types at once, the numbers one tensor at a time.

A pickle is a program. None of its calls is run, and none of its names imported: see ldm_us/files/pickle_program.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError

from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import LazyTensor
from ldm_us.files.pickle_file import stored_weights
from ldm_us.files.safetensors_header import DTYPES, read_header
from ldm_us.files.stored_tensor import Storage, StoredTensor, row_major

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

# Per component of a diffusers folder: its weights, the best first; the .fp16 variants have lost precision.
WEIGHTS = tuple(f"diffusion_pytorch_model{end}" for end in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin"))
TEXT_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "pytorch_model.fp16.bin")

COMPONENTS = {"unet": WEIGHTS, "vae": WEIGHTS, "text_encoder": TEXT_WEIGHTS, "controlnet": WEIGHTS}


@dataclass(frozen=True)
class Source:
    """Everything that one SRC holds, not yet read; names in a folder are those of the file behind "component/"."""

    path: Path
    files: tuple[Path, ...]
    entries: dict[str, LazyTensor]
    metadata: dict[str, str] = field(default_factory=dict)  # of a .safetensors file

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """SHA-256 of every file; each is read once for it."""
        return {file: sha256_file(file) for file in self.files}


def open_source(path: Path) -> Source:
    """Open a .safetensors, a pickle or a diffusers folder. Raise ValueError, naming the file, if it is none of them."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder. Check the path.")
    if not path.is_file():
        raise ValueError(f"{path}: a device or a pipe, not a file. Save the weights to a file first.")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: the file is empty. Download or copy it again.")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: this is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`.")
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        return _open_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return Source(path, (path,), _unread(stored_weights(path)))
    endings = ", ".join((".safetensors", *PICKLE_SUFFIXES))
    raise ValueError(f"{path}: not a checkpoint by its name. Give a file ending in {endings}, or a diffusers folder.")


def _open_folder(folder: Path) -> Source:
    found = {f"{component}/": _best(folder / component, names) for component, names in COMPONENTS.items()}
    if not any(found.values()):
        found = {"": _best(folder, (*WEIGHTS, *TEXT_WEIGHTS))}  # the folder of one component alone
    files = {start: file for start, file in found.items() if file is not None}
    if not files:
        raise ValueError(
            f"{folder}: no weights in this folder. A diffusers folder has unet/{WEIGHTS[0]}, vae/{WEIGHTS[0]} and "
            f"text_encoder/{TEXT_WEIGHTS[0]}, or the same names with .bin."
        )
    entries: dict[str, LazyTensor] = {}
    for start, file in files.items():
        entries |= {f"{start}{name}": entry for name, entry in open_source(file).entries.items()}
    return Source(folder, tuple(files.values()), entries)


def _best(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _open_safetensors(path: Path) -> Source:
    try:
        header = read_header(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a complete .safetensors file ({error}). It was probably cut short: download or copy it again."
        ) from error
    tensors = {}
    for name, (dtype, shape, begin, _) in header.tensors.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {name} has type {dtype}. Give the model in fp32, fp16 or bf16.")
        storage = Storage(name, DTYPES[dtype], math.prod(shape), path, begin)
        tensors[name] = StoredTensor(storage, shape, row_major(shape))
    return Source(path, (path,), _unread(tensors), header.metadata)


def _unread(tensors: Mapping[str, StoredTensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor(name, tensor.shape, tensor.storage.dtype, tensor.read) for name, tensor in tensors.items()}
