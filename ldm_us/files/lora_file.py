"""A LoRA as a small safetensors file, beside the model it was trained on: save, load, apply.   Paper: arXiv 2106.09685.

The file holds the matrices of every update under the names of our modules (`unet....to_q.lora_down.weight`), what was
trained whole under its own name (a ControlNet's hint network and zero convolutions, a learned prompt), and as metadata
the LoRAConfig and the SHA-256 of the model file. weights_convert/lora_*.py bring it to other programs' names and back.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

import ldm_us
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import check_numbers, lazy_tensors, misfits, write_safetensors
from ldm_us.files.json_values import parse_json
from ldm_us.files.originals import advice, import_command
from ldm_us.files.safetensors_header import open_safetensors
from ldm_us.files.stored_tensor import shown
from ldm_us.networks.lora import LoRAConfig, Update, add_update, is_update, lora_shapes, lora_state

PROMPT = "text.prompt"
UNKNOWN_BASE = "unknown"  # of a LoRA that another program trained, on a model that its file does not name
MAX_FULL = 1000  # names of what a LoRA trains whole; each is looked for among all parameters of the model


class LoRA(NamedTuple):
    """What a LoRA file holds."""

    config: LoRAConfig
    tensors: dict[str, Tensor]
    metadata: dict[str, str]  # base_sha256, ldm_us, lineage and whatever else save_lora was given
    name: str  # the file, for messages

    @property
    def base_sha256(self) -> str:
        """SHA-256 of the model file that it was trained on, or "random", or UNKNOWN_BASE."""
        return self.metadata["base_sha256"]

    @property
    def updates(self) -> list[Update]:
        """Every module that it updates, in the order of the file."""
        end = ".lora_down.weight"
        return self.config.updates(name.removesuffix(end) for name in self.tensors if name.endswith(end))

    @property
    def has_controlnet(self) -> bool:
        """Whether it updates a ControlNet, or trained a part of one whole."""
        return any(name.startswith("controlnet") for name in self.config.parts + self.config.full)


def save_lora(
    path: Path | str,
    model: LatentDiffusion,
    config: LoRAConfig,
    base_sha256: str,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the LoRA that add_lora put in `model`, atomically. base_sha256: of the model file, Lineage.parent."""
    settings = {
        "ldm_us": ldm_us.__version__,
        "lora": json.dumps(dataclasses.asdict(config)),
        "base_sha256": base_sha256,
    }
    write_safetensors(path, lazy_tensors(lora_state(model, config)), settings | (metadata or {}))


def load_lora(path: Path | str) -> LoRA:
    """Read a LoRA file. Raise ValueError, in one sentence, for one that is missing, broken or of another kind."""
    path = Path(path)
    if path.is_dir():
        inside = path / "lora.safetensors"
        how = f"Give {inside}." if inside.is_file() else advice(path, "--lora")
        raise ValueError(f"{path}: a folder, not a LoRA file. {how}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give a LoRA that train.py wrote, or {_imported(path)}.")
    try:
        with open_safetensors(path) as file:
            metadata = dict(file.metadata() or {})
            config = read_settings(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}). Copy the LoRA again, or {_imported(path)}."
        ) from error
    for name, value in tensors.items():
        check_numbers(path, name, value)
    return LoRA(config, tensors, metadata, str(path))


def _imported(path: Path) -> str:
    return f"import one of another program: {import_command(path, '--lora')}"


def read_settings(path: Path, metadata: dict[str, str]) -> LoRAConfig:
    """The LoRAConfig in the metadata of a LoRA file. Raise ValueError for a file of another kind."""
    if "config" in metadata:
        raise ValueError(f"{path}: a whole model, not a LoRA. Give a LoRA that train.py wrote.")
    if "lora" not in metadata or "base_sha256" not in metadata:
        raise ValueError(
            f"{path}: a safetensors file without settings of a LoRA, not a LoRA of ours. Give one that train.py wrote, "
            f"or {_imported(path)}."
        )
    try:
        values: dict[str, Any] = parse_json(metadata["lora"])
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        values["modules"] = tuple(Update(*update) for update in values.get("modules", ()))
        config = LoRAConfig(**values)
        if type(config.rank) is not int or len(config.full) > MAX_FULL:
            raise ValueError(f"a rank that is no whole number, or more than {MAX_FULL} names trained whole")
        return config
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: its LoRA settings cannot be read: {shown(str(error))}") from error


def apply_lora(model: LatentDiffusion, lora: LoRA | Path | str, scale: float = 1.0) -> None:
    """Merge a LoRA into the weights of `model`, in place: W + scale * alpha / r B A.

    Several can be applied one after another; -scale takes one out again but for rounding (add_update says how much):
    for the same bits read the model again. What was trained whole is not scaled: it takes the place of the model's own,
    and a ControlNet or a learned prompt is added where there is none.
    Raise ValueError, before anything changes, unless the LoRA has exactly the tensors that fit this model.
    """
    lora = lora if isinstance(lora, LoRA) else load_lora(lora)
    check_fit(model, lora)
    if lora.has_controlnet and model.controlnet is None:  # added frozen, as after load_model; so is a learned prompt
        with torch.random.fork_rng(devices=[]):  # what is no copy of the UNet takes its values from the LoRA
            model.add_controlnet().train(model.training).requires_grad_(False)
    if PROMPT in lora.tensors and model.text.prompt is None:
        model.add_prompt_tokens(len(lora.tensors[PROMPT]), torch.Generator()).requires_grad_(False)
    for name in lora.tensors:
        if not is_update(name):
            model.get_parameter(name).data.copy_(lora.tensors[name])
    for update in lora.updates:
        down, up = (lora.tensors[f"{update.module}.{matrix}.weight"] for matrix in ("lora_down", "lora_up"))
        add_update(model.get_parameter(f"{update.module}.weight"), down, up, scale * update.scale)


def check_fit(model: LatentDiffusion, lora: LoRA) -> None:
    """Raise ValueError unless the LoRA has exactly the tensors that its config means for a model like this one."""
    found = {name: tuple(tensor.shape) for name, tensor in lora.tensors.items()}
    config = model.config
    if found.get(PROMPT) and not config.text.prompt_tokens:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, prompt_tokens=found[PROMPT][0]))
    try:
        with torch.device("meta"):  # with what would be added to the model, and without the memory
            like = LatentDiffusion(config)
            if lora.has_controlnet:
                like.add_controlnet()
        expected = lora_shapes(like, lora.config)
    except ValueError as error:
        raise ValueError(f"{lora.name}: {error}") from error
    wrong = misfits(expected, found, "that the model has no place for")
    if wrong:
        raise ValueError(
            f"{lora.name}: {wrong}. The LoRA does not fit {config.name}: apply it to the model it was trained on."
        )
