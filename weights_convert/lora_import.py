"""`import --lora`: a LoRA of another program, checked against a model and written as one of ours.

What a LoRA of ours can express: an update B A of any linear layer or convolution of UNet and text encoder, each with a
rank and alpha of its own. Other kinds of adapters, and those of other families of models, are refused by name.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

import ldm_us
from ldm_us.config import ModelConfig
from ldm_us.files.atomic import full_disk_is_an_error_of_input
from ldm_us.files.checkpoint import write_safetensors
from ldm_us.files.lora_file import UNKNOWN_BASE
from ldm_us.networks.lora import PROJECTIONS, LoRAConfig, Update, update_shapes
from weights_convert.convert import DTYPES, Piece, lazy, type_and_shape
from weights_convert.detect import FLUX, FOREIGN_CONTEXT_WIDTHS, V3, XL
from weights_convert.lora_names import COMPONENTS, HEADER, layers, spellings, split_name
from weights_convert.result_place import check_result_file
from weights_convert.source_config import choose_config
from weights_convert.sources import Source, open_source
from weights_convert.summary import updates_of, written

FOREIGN = (  # a pattern for fnmatch -> what has such names
    ("lora_te2_*", f"a LoRA of {XL}"),
    ("text_encoder_2.*", f"a LoRA of {XL}"),
    ("*joint_blocks*", f"a LoRA of {V3}"),
    ("*double_blocks*", f"a LoRA of {FLUX}"),
    ("*single_transformer_blocks*", f"a LoRA of {FLUX}"),
    ("transformer.*", "a LoRA of a Stable Diffusion 3 or Flux model"),
    ("*.dora_scale", "a DoRA: it scales the columns of the weights as well"),
    ("*.lora_magnitude_vector*", "a DoRA: it scales the columns of the weights as well"),
    ("*.hada_w*", "a LoHa: a product of two updates, entry by entry"),
    ("*.lokr_*", "a LoKr: a Kronecker product"),
    ("*.lora_mid.weight", "a LoCon with a Tucker decomposition: three matrices in place of two"),
    ("*.oft_*", "an OFT: it rotates the weights"),
    ("*.diff", "weights trained whole"),
    ("*.diff_b", "biases trained whole"),
    ("*.lora_B.bias", "a LoRA with biases"),
)
PLAIN = "Only plain LoRAs of Stable Diffusion 1.x can be imported: matrices A and B of linear layers and convolutions"

FOLDER_FILE = "pytorch_lora_weights.safetensors"  # what diffusers writes into a folder and looks for there
OF_OTHERS = (HEADER, "format", "sources", "ss_network_module", "ss_network_dim", "ss_network_alpha")  # not carried back


def import_lora(path: Path, base: Path, out: Path, dtype: str | None = None, overwrite: bool = False) -> None:
    """Write a LoRA of another program, a file or diffusers' folder, as one of ours, for models of the size of `base`.

    Which model it was trained on is known only if we exported it. Raise ValueError, in one sentence, for other kinds of
    adapters and for names or shapes without a place in `base`.
    """
    check_result_file(out, ".safetensors", overwrite, [path, base])
    sizes = open_source(base)
    if "config" not in sizes.metadata:
        raise ValueError(f"--base {base}: not a model file of ours. Give one that train.py or weights_convert wrote.")
    config = choose_config(sizes, preset=None)
    source = open_source(path / FOLDER_FILE if path.is_dir() else path)
    updates, pieces = read_lora(source, config)
    sources = [{"file": file.name, "sha256": digest} for file, digest in source.hashes.items()]
    metadata = {key: value for key, value in source.metadata.items() if key not in OF_OTHERS}
    if "base_sha256" not in metadata:  # the history of a LoRA that we exported is carried on
        metadata = {"base_sha256": UNKNOWN_BASE}
    metadata |= {
        "ldm_us": ldm_us.__version__,
        "lora": json.dumps(dataclasses.asdict(plainest(updates, layers(config)))),
        "sources": json.dumps(sources),
    }
    with full_disk_is_an_error_of_input(out):
        write_safetensors(out, [lazy(piece, DTYPES.get(dtype or "")) for piece in pieces], metadata)
    print(f"{path}: {updates_of(updates)}")
    print("\n".join(f"  read {file}  sha256 {digest}" for file, digest in source.hashes.items()))
    if metadata["base_sha256"] == UNKNOWN_BASE:
        print(f"  it does not say what it was trained on: apply it to any model of the size of {config.name}")
    print(f"wrote {out}  {written(out)}")


def read_lora(source: Source, config: ModelConfig) -> tuple[list[Update], list[Piece]]:
    """Give every tensor its place in a model of this config. Raise ValueError, in one sentence, where one has none."""
    if "lora" in source.metadata and "base_sha256" in source.metadata:
        raise ValueError(f"{source.path}: a LoRA of ours already. Give it to sample.py --lora as it is.")
    refuse_foreign(source, config)
    keys = sort_keys(source, config)
    shapes = layers(config)
    alphas = header_alphas(source, keys)
    updates, pieces = [], []
    for module in (module for module in shapes if module in keys):  # in the order of the model
        key = keys[module]
        entry = source.entries[key["down"]]
        rank = entry.shape[0] if entry.shape else 0
        alpha = alphas.get(module, float(rank))
        if "alpha" in key:  # a tensor, in kohya's names
            alpha_entry = source.entries[key["alpha"]]
            if math.prod(alpha_entry.shape) != 1:
                raise ValueError(f"{source.path}: {key['alpha']} is {list(alpha_entry.shape)}, not one number.")
            alpha = float(alpha_entry.load().to(torch.float64))
        if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"{source.path}: {key['down']} has rank {rank} and alpha {alpha}. Both must be above 0.")
        updates.append(Update(module, rank, alpha))
        ours = update_shapes(updates[-1], shapes[module]).items()
        for kind, (target, shape) in zip(("down", "up"), ours, strict=True):
            pieces.append(piece(source, key[kind], target, shape))
    return updates, pieces


def refuse_foreign(source: Source, config: ModelConfig) -> None:
    """Raise ValueError for adapters of another kind or of another family of models."""
    for pattern, what in FOREIGN:
        name = next((name for name in source.entries if fnmatchcase(name, pattern)), None)
        if name is not None:
            raise ValueError(f"{source.path}: {what} ({name}). {PLAIN}.")
    for name, entry in source.entries.items():
        module, kind = split_name(name) or ("", "")
        if kind != "down" or not module.endswith(("attn2_to_k", "attn2.to_k")) or len(entry.shape) < 2:
            continue
        if entry.shape[1] != config.unet.context_width and entry.shape[1] in FOREIGN_CONTEXT_WIDTHS:
            raise ValueError(f"{source.path}: a LoRA of {FOREIGN_CONTEXT_WIDTHS[entry.shape[1]]} ({name}). {PLAIN}.")


def sort_keys(source: Source, config: ModelConfig) -> dict[str, dict[str, str]]:
    """Our module -> {"down", "up" or "alpha": name in the source}. Raise ValueError for names without a place."""
    ours = spellings(config)
    keys: dict[str, dict[str, str]] = {}
    unknown = []
    for name in source.entries:
        module, kind = split_name(name) or ("", "")
        if module not in ours:
            unknown.append(name)
        elif keys.setdefault(ours[module], {}).setdefault(kind, name) != name:
            raise ValueError(f"{source.path}: {name} and {keys[ours[module]][kind]} are the same tensor. Remove one.")
    if unknown or not keys:
        listed = ", ".join(unknown[:3]) or "none at all"
        raise ValueError(
            f"{source.path}: {len(unknown)} of {len(source.entries)} names belong to no layer of {config.name} "
            f"({listed}). {PLAIN}, with --base a model of the size they were trained for."
        )
    for key in keys.values():
        if not {"down", "up"} <= key.keys():
            raise ValueError(f"{source.path}: {min(key.values())} lacks its other matrix. Copy the LoRA again.")
    return keys


def piece(source: Source, key: str, target: str, shape: tuple[int, ...]) -> Piece:
    """One matrix. A linear layer and a convolution of 1 x 1 are the same map, so either shape does for both."""
    entry = source.entries[key]
    if _matrix(entry.shape) != _matrix(shape) or not entry.dtype.is_floating_point:
        found, expected = type_and_shape(entry), list(shape)
        raise ValueError(f"{source.path}: {key} is {found}, not {expected}. Give --base the size of its model.")
    return Piece(target, shape, source.path, key, entry)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def header_alphas(source: Source, keys: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The alpha of every module that the header of a file of diffusers gives one: PEFT's LoraConfig of each part."""
    if HEADER not in source.metadata:
        return {}
    alphas: dict[str, float] = {}
    try:
        settings: dict[str, Any] = json.loads(source.metadata[HEADER])
        for part, start in COMPONENTS.items():
            own = [module for module in keys if module.startswith(f"{part}.")]
            patterns: dict[str, float] = dict(settings.get(f"{start}alpha_pattern") or {})
            used = set()
            for module in own:
                name = (split_name(keys[module]["down"]) or ("", ""))[0].removeprefix(start)
                pattern = next((pattern for pattern in patterns if stands_for(pattern, name)), None)
                used.add(pattern)
                alphas[module] = float(settings[f"{start}lora_alpha"] if pattern is None else patterns[pattern])
                if settings.get(f"{start}use_rslora"):  # scaled by alpha / sqrt(r) (arXiv 2312.03732)
                    alphas[module] *= math.sqrt(source.entries[keys[module]["down"]].shape[0])
            if own and patterns.keys() - used:
                raise ValueError(f"{min(patterns.keys() - used)} in alpha_pattern is the name of none of its modules")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{source.path}: {HEADER} in its header cannot be used ({error!r}).") from error
    return alphas


def stands_for(pattern: str, name: str) -> bool:
    """Whether a key of PEFT's alpha_pattern is the name of a module or the end of it; ^ asks for the whole name."""
    return pattern == f"^{name}" or f".{name}".endswith(f".{pattern}")


def plainest(updates: Sequence[Update], shapes: Iterable[str]) -> LoRAConfig:
    """One rank and alpha for whole kinds of projections, as train.py makes LoRAs, or else module by module."""
    modules = {update.module for update in updates}
    parts = tuple(part for part in COMPONENTS if any(module.startswith(f"{part}.") for module in modules))
    kinds = {_kind(module) for module in modules}
    every = {_kind(name) for name in shapes if name.split(".")[0] in parts and _kind(name)}
    covered = {name for name in shapes if name.split(".")[0] in parts and _kind(name) in kinds}
    if len({update[1:] for update in updates}) > 1 or covered != modules or "" in kinds:
        return LoRAConfig(parts=(), modules=tuple(updates))
    targets: list[str] = []
    for projection in PROJECTIONS:
        own = {kind for kind in kinds if kind.endswith(f".{projection}")}
        whole = own == {kind for kind in every if kind.endswith(f".{projection}")}
        targets += [projection] if whole else sorted(own)
    return LoRAConfig(updates[0].rank, updates[0].alpha, parts, tuple(targets))


def _kind(module: str) -> str:
    """ "cross.q" of a cross_attention.to_q, "" of what is no projection of an attention."""
    attention, _, projection = module.rpartition(".to_")
    if not attention.endswith("attention"):
        return ""
    return f"{'cross' if attention.endswith('cross_attention') else 'self'}.{projection}"
