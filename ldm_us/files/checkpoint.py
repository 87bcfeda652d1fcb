"""A model as one safetensors file: vae.* text.* unet.* controlnet.*, with config and provenance as metadata."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import ldm_us
from ldm_us.config import ModelConfig, config_from_dict, config_to_dict
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import atomic_file
from ldm_us.files.json_values import parse_json
from ldm_us.files.originals import advice, import_command, option_for
from ldm_us.files.safetensors_header import DTYPES, open_safetensors, read_tensors
from ldm_us.files.stored_tensor import shown
from ldm_us.networks.lora import is_update

NETWORKS = ("vae", "text", "unet", "controlnet")
MEASURED = ("prior", "grain")  # a few thousand numbers that go with the networks: loaded whatever is asked for
PARTS = NETWORKS + MEASURED

Shapes = dict[str, tuple[int, ...]]  # of tensors, by name
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LazyTensor(NamedTuple):
    """A tensor that is loaded only while it is needed, so that a file larger than memory can be read and made."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]


def write_safetensors(path: Path | str, tensors: Iterable[LazyTensor], metadata: dict[str, str]) -> None:
    """Write tensors one by one, atomically. The format: header length, JSON header, bytes (safetensors README)."""
    tensors = list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    with atomic_file(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors:
            values = tensor.load()
            assert (tuple(values.shape), values.dtype) == (tensor.shape, tensor.dtype), tensor.name
            file.write(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def save_model(model: LatentDiffusion, path: Path | str, metadata: dict[str, str] | None = None) -> None:
    """Write weights, config and metadata to `path`, atomically."""
    write_state_dict(path, model.state_dict(), model.config, metadata)


def write_state_dict(
    path: Path | str, state: dict[str, Tensor], config: ModelConfig, metadata: dict[str, str] | None = None
) -> None:
    """Write weights in our names, such as an EMA of them, as a model file. Raise ValueError for a LoRA in them."""
    updates = [name for name in state if is_update(name)]
    if updates:
        raise ValueError(
            f"{path}: not written, for the model has a LoRA of {len(updates)} matrices that is not merged. First "
            "merge_lora it, or save_lora the LoRA alone."
        )
    write_safetensors(path, lazy_tensors(state), model_metadata(config) | (metadata or {}))


def lazy_tensors(state: Mapping[str, Tensor]) -> list[LazyTensor]:
    """Tensors in memory, for write_safetensors."""
    return [
        LazyTensor(name, tuple(value.shape), value.dtype, lambda value=value: value)  # type: ignore[misc]
        for name, value in state.items()
    ]


def model_metadata(config: ModelConfig) -> dict[str, str]:
    """What every model file says of itself."""
    return {"ldm_us": ldm_us.__version__, "config": json.dumps(config_to_dict(config))}


def load_model(
    path: Path | str,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    parts: Collection[str] = NETWORKS,
    as_part: str = "",
) -> LatentDiffusion:
    """Read a model file, its ControlNet included where it has one. dtype None means float32.

    Parts that are not asked for stay on the meta device, where they take no memory, until `loaded` brings them in.
    `as_part` is the option of an import that takes original weights of this kind into a model, such as "--controlnet".
    Raise ValueError, in one sentence, for a file that is missing, broken, of another kind or of other keys.
    """
    with open_model_file(path, as_part) as file:
        with_controlnet = any(name.startswith("controlnet.") for name in file.keys())  # noqa: SIM118
        model = _build_on_meta(path, _read_config(path, file.metadata() or {}, as_part), with_controlnet)
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wrong = misfits({name: tuple(value.shape) for name, value in model.state_dict().items()}, found)
    if wrong:
        raise ValueError(f"{path}: {wrong}. The file does not fit the config it carries; convert it again.")
    for part in (*parts, *MEASURED):
        if getattr(model, part) is not None:
            load_part(model, path, part, device, dtype if part in NETWORKS else None)
    return model.eval().requires_grad_(False)


def load_part(
    model: LatentDiffusion, path: Path | str, part: str, device: str | torch.device, dtype: torch.dtype | None = None
) -> None:
    """Fill one part of a model from its file; the file's keys were checked when the model was built.

    The weights are copied: a file that is overwritten later must not reach into a model that was read from it.
    """
    target = torch.float32 if dtype is None else dtype
    state: dict[str, Tensor] = {}
    with in_one_sentence(path):
        for name, value in read_tensors(path, f"{part}."):
            check_numbers(path, name, value)
            state[name.removeprefix(f"{part}.")] = value.to(device, target)
    module = model.get_submodule(part)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def check_numbers(path: Path | str, name: str, value: Tensor) -> None:
    """Raise ValueError, naming the tensor, for weights that are NaN or infinite: they would sample black pictures."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise ValueError(
            f"{path}: {name}: {bad} of its {value.numel()} values {'is' if bad == 1 else 'are'} NaN or infinite. A "
            "merge or a training has gone wrong; use another file."
        )


@contextmanager
def loaded(model: LatentDiffusion, path: Path | str | None, *parts: str) -> Iterator[None]:
    """Inside, the parts hold their weights; those that were on the meta device go back there after.

    Nothing keeps them meanwhile but the system, which has the pages of the file in memory while there is room for them.
    """
    absent = [part for part in parts if on_meta(model.get_submodule(part))]
    assert path is not None or not absent, "only a model of a file can lack parts"
    for part in absent:
        load_part(model, str(path), part, model.device)
    try:
        yield
    finally:
        for part in absent:
            model.get_submodule(part).to("meta")


def on_meta(part: nn.Module) -> bool:
    """Say whether a part of a model is a shape without weights."""
    return next(iter(part.state_dict().values())).is_meta


def read_metadata(path: Path | str) -> dict[str, str]:
    """Config, version, stage, steps and lineage of a model file."""
    with open_model_file(path) as file:
        return dict(file.metadata() or {})


def open_model_file(path: Path | str, as_part: str = "") -> safe_open:
    """open_safetensors, with one clear sentence for what is missing or not a safetensors file."""
    with in_one_sentence(path, as_part):
        return open_safetensors(path)


@contextmanager
def in_one_sentence(path: Path | str, as_part: str = "") -> Iterator[None]:
    """Inside, a model file that is missing, a folder or not a whole safetensors file is one ValueError."""
    path = Path(path)
    if path.is_dir():
        inside = path / "model.safetensors"
        whole = inside.is_file() and not option_for(path)
        raise ValueError(f"{path}: a folder, not a model file. {f'Give {inside}.' if whole else advice(path, as_part)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give a model.safetensors that train.py or weights_convert wrote.")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}). Copy it again, or convert original weights with "
            f"{import_command(path, as_part)}."
        ) from error


def _read_config(path: Path | str, metadata: dict[str, str], as_part: str = "") -> ModelConfig:
    if "lora" in metadata:
        raise ValueError(
            f"{path}: a LoRA, not a whole model. Load the model it was trained on, and apply the LoRA to it."
        )
    if "config" not in metadata:
        raise ValueError(
            f"{path}: a safetensors file, but not one of ours (no config in it). Convert it first: "
            f"{import_command(path, as_part)}."
        )
    try:
        return config_from_dict(parse_json(metadata["config"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its config cannot be read: {shown(str(error))}") from error


class _NoInitialValues(TorchFunctionMode):
    """Leave nn.init.normal_ out: for a tensor without numbers it would import torch's compiler, which takes 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def _build_on_meta(path: Path | str, config: ModelConfig, with_controlnet: bool) -> LatentDiffusion:
    try:
        with torch.device("meta"), _NoInitialValues():
            model = LatentDiffusion(config)
            if with_controlnet:
                model.add_controlnet()
            return model
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # what torch says of a width of -1 or "x"
        raise ValueError(f"{path}: no model can be built from its config: {shown(str(error))}") from error


def misfits(expected: Shapes, found: Shapes, unknown: str = "unknown") -> str:
    """Which tensors are missing, too many (what `unknown` says of them) or of another shape; "" where all fit."""
    problems = {
        "missing": expected.keys() - found.keys(),
        unknown: found.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & found.keys() if expected[n] != found[n]},
    }
    return "; ".join(
        f"{len(names)} tensors {what} ({', '.join(sorted(names)[:3])})" for what, names in problems.items() if names
    )
