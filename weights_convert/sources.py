"""Files and folders of weights, opened lazily: names, shapes and types at once, the numbers one tensor at a time.

A pickle is a program. It is read with weights_only=True, which builds tensors and plain containers and nothing else.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

DTYPES = {  # safetensors' names
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

# Per component of a diffusers folder: its weights, the best first; the .fp16 variants have lost precision.
WEIGHTS = tuple(f"diffusion_pytorch_model{end}" for end in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin"))
TEXT_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "pytorch_model.fp16.bin")
COMPONENTS = {"unet": WEIGHTS, "vae": WEIGHTS, "text_encoder": TEXT_WEIGHTS, "controlnet": WEIGHTS}


class ModelCheckpoint:
    """Stands for the class that sd-v1-4.ckpt names as a dictionary key, so that none of Lightning's code runs."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"  # torch looks it up by this name


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, not yet read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Source:
    """Everything that one SRC holds; names in a folder are those of the file behind "component/"."""

    path: Path
    files: tuple[Path, ...]
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)  # of a .safetensors file


def source_from_state_dict(state_dict: Mapping[str, Tensor], path: Path | None = None) -> Source:
    """Look at tensors in memory as if they were a file."""
    entries = {name: _memory_entry(value) for name, value in state_dict.items()}
    return Source(path or Path("state dict"), () if path is None else (path,), entries)


def _memory_entry(value: Tensor) -> Entry:
    return Entry(tuple(value.shape), value.dtype, lambda: value)


def open_source(path: Path) -> Source:
    """Open a .safetensors, a pickle or a diffusers folder. Raise ValueError, naming the file, if it is none of them."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder. Check the path.")
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
        return _open_pickle(path, zipped=head.startswith(b"PK"))
    endings = ", ".join((".safetensors", *PICKLE_SUFFIXES))
    raise ValueError(f"{path}: not a checkpoint by its name. Give a file ending in {endings}, or a diffusers folder.")


def _open_folder(folder: Path) -> Source:
    files: list[Path] = []
    entries: dict[str, Entry] = {}
    for component, names in COMPONENTS.items():
        file = _best(folder / component, names)
        if file is not None:
            files.append(file)
            entries |= {f"{component}/{name}": entry for name, entry in open_source(file).entries.items()}
    if files:
        return Source(folder, tuple(files), entries)
    file = _best(folder, WEIGHTS) or _best(folder, TEXT_WEIGHTS)  # the folder of one component alone
    if file is not None:
        return Source(folder, (file,), open_source(file).entries)
    raise ValueError(
        f"{folder}: no weights in this folder. A diffusers folder has unet/{WEIGHTS[0]}, vae/{WEIGHTS[0]} and "
        f"text_encoder/{TEXT_WEIGHTS[0]}, or the same names with .bin."
    )


def _best(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _open_safetensors(path: Path) -> Source:
    try:
        file = safe_open(path, framework="pt")
        entries = {name: _safetensors_entry(file, name, path) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Source(path, (path,), entries, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a complete .safetensors file ({error}). It was probably cut short: download or copy it again."
        ) from error


def _safetensors_entry(file: Any, name: str, path: Path) -> Entry:
    tensor = file.get_slice(name)
    if tensor.get_dtype() not in DTYPES:
        raise ValueError(f"{path}: {name} has type {tensor.get_dtype()}. Give the model in fp32, fp16 or bf16.")
    return Entry(tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()], lambda: file.get_tensor(name))


def _open_pickle(path: Path, zipped: bool) -> Source:
    try:
        with torch.serialization.safe_globals([ModelCheckpoint]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on unsafe loading, which is not for the user to follow
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can fail anywhere in its reader
        raise ValueError(f"{path}: {_why_unreadable(error)}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors. Give a checkpoint.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor. Give a file with a state dict, or "
                "with one under `state_dict`."
            )
    return source_from_state_dict(content, path)


def _why_unreadable(error: Exception) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and asked:
        return (
            f"refused: this pickle asks for {asked[1]}, which weights do not need and which could run code. Nothing in "
            "it was run. Use a .safetensors version of the model."
        )
    return (
        f"not a PyTorch checkpoint, or cut short ({type(error).__name__}); nothing in it was run. Download or copy it "
        "again."
    )
