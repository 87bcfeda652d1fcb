"""Files and folders of weights, opened lazily: names, shapes and types at once, the numbers one tensor at a time.

A pickle is a program. None of its calls is run, and none of its names imported: see ldm_us/files/pickle_program.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import LazyTensor
from ldm_us.files.json_values import parse_json
from ldm_us.files.originals import WHAT, import_command, option_for
from ldm_us.files.pickle_file import stored_weights, without_wrappers
from ldm_us.files.safetensors_header import DTYPES, read_header
from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT, Storage, StoredTensor, row_major, shown

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

VARIANTS = ("", ".fp16", ".bf16", ".non_ema")  # the best first: half precision has lost digits, non_ema is no average


def _names(safetensors: str, pickle: str) -> tuple[str, ...]:
    """The names that the weights of one component may have, the best first; an index lists the files of their parts."""
    files = [
        (f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json")
        for variant in VARIANTS
        for stem, ending in ((safetensors, ".safetensors"), (pickle, ".bin"))
    ]
    return tuple(name for names in files for name in names)


WEIGHTS = _names("diffusion_pytorch_model", "diffusion_pytorch_model")
TEXT_WEIGHTS = _names("model", "pytorch_model")
COMPONENTS = {"unet": WEIGHTS, "vae": WEIGHTS, "text_encoder": TEXT_WEIGHTS, "controlnet": WEIGHTS}
WHOLE = ("unet", "vae", "text_encoder")  # components of a whole model


@dataclass(frozen=True)
class Source:
    """Everything that one SRC holds, not yet read; names in a folder are those of the file behind "component/"."""

    path: Path
    files: tuple[Path, ...]
    entries: dict[str, LazyTensor]
    metadata: dict[str, str] = field(default_factory=dict)  # of a .safetensors file
    lacking: tuple[str, ...] = ()  # the components of a whole model that its folder has no weights of

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
    ending = path.suffix.lower()
    if ending == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        return _open_safetensors(path)
    if ending in PICKLE_SUFFIXES:
        return Source(path, (path,), _unread(stored_weights(path)))
    endings = ", ".join((".safetensors", *PICKLE_SUFFIXES))
    raise ValueError(f"{path}: not a checkpoint by its name. Give a file ending in {endings}, or a diffusers folder.")


def _open_folder(folder: Path) -> Source:
    found = {f"{component}/": _best(folder / component, names) for component, names in COMPONENTS.items()}
    if not any(found.values()):
        found = {"": _best(folder, (*WEIGHTS, *TEXT_WEIGHTS))}  # the folder of one component alone
        lacking: list[str] = []
    else:
        lacking = [component for component in WHOLE if found[f"{component}/"] is None]
    opened = {start: _open_weights(file) for start, file in found.items() if file is not None}
    if not opened and option_for(folder) in ("--lora", "--embedding"):
        option = option_for(folder)
        raise ValueError(f"{folder}: holds a {WHAT[option]}, not a model. {import_command(folder, option)} takes it.")
    if not opened:
        raise ValueError(
            f"{folder}: no weights in this folder. A diffusers folder has unet/{WEIGHTS[0]}, vae/{WEIGHTS[0]} and "
            f"text_encoder/{TEXT_WEIGHTS[0]}, or the same names with .bin."
        )
    entries = {f"{start}{name}": entry for start, own in opened.items() for name, entry in own.entries.items()}
    files = tuple(file for own in opened.values() for file in own.files)
    return Source(folder, files, entries, lacking=tuple(lacking))


def _open_weights(path: Path) -> Source:
    """The weights of one component: a file, or those that an index lists."""
    if path.suffix != ".json":
        return open_source(path)
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"{path}: has no weight_map of file names. Download or copy it again.")
    shards = sorted(set(listed.values()))
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise ValueError(f"{path}: names {shown(outside[0])}, a file that is not beside it. Use another copy.")
    absent = [name for name in shards if not (path.parent / name).is_file()]
    if absent:
        raise ValueError(
            f"{path}: {len(absent)} of the {len(shards)} files that it lists are not there: "
            f"{shown(', '.join(absent))}. Download or copy them."
        )
    sources = [open_source(path.parent / name) for name in shards]
    entries = {name: entry for source in sources for name, entry in source.entries.items()}
    if len(entries) != sum(len(source.entries) for source in sources) or not listed.keys() <= entries.keys():
        lost = ", ".join(sorted(listed.keys() - entries.keys())[:3]) or "none, but some twice"
        raise ValueError(f"{path}: its files do not hold the tensors that it lists ({shown(lost)}). Copy them again.")
    return Source(path, tuple(file for source in sources for file in source.files), entries)


def read_json(path: Path) -> dict[str, Any]:
    """The table of a .json file. Raise ValueError, naming the file, for anything else."""
    try:
        if path.stat().st_size > DESCRIPTION_LIMIT:
            raise ValueError("too large")
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({shown(str(error))}). Download or copy it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}, not a table. Download or copy it again.")
    return values


def _best(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _open_safetensors(path: Path) -> Source:
    try:
        header = read_header(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a sound .safetensors file ({error}). Download or copy it again.") from error
    tensors = {}
    for name, (dtype, shape, begin, _) in header.tensors.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {name} has type {dtype}. Give the model in fp32, fp16 or bf16.")
        storage = Storage(name, DTYPES[dtype], math.prod(shape), path, begin)
        tensors[name] = StoredTensor(storage, shape, row_major(shape))
    return Source(path, (path,), _unread(tensors), header.metadata)


def _unread(tensors: Mapping[str, StoredTensor]) -> dict[str, LazyTensor]:
    named = without_wrappers(tensors)
    return {name: LazyTensor(name, tensor.shape, tensor.storage.dtype, tensor.read) for name, tensor in named.items()}
