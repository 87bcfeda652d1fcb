"""`import --lora`: a LoRA of another program, checked against a model and written as one of ours.

What a LoRA of ours can express: an update B A of any linear layer or convolution of UNet and text encoder, each with a
rank and alpha of its own. Other kinds of adapters, and those of other families of models, are refused by name.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

import ldm_us
from ldm_us.config import ModelConfig
from ldm_us.files.atomic import full_disk_is_an_error_of_input
from ldm_us.files.checkpoint import write_safetensors
from ldm_us.files.lora_file import UNKNOWN_BASE
from ldm_us.files.stored_tensor import shown
from ldm_us.networks.lora import PROJECTIONS, LoRAConfig, Update, update_shapes
from ldm_us.runtime.entry import note
from weights_convert.convert import DTYPES, Piece, lazy, type_and_shape
from weights_convert.lora_kinds import BUNDLED, PLAIN, bundled_words, refuse_kinds
from weights_convert.lora_names import HEADER, LORA_PARTS, layers, spellings, split_name
from weights_convert.lora_peft import alphas_of, open_lora
from weights_convert.result_place import check_result_file
from weights_convert.source_config import choose_config
from weights_convert.sources import Source, open_source
from weights_convert.summary import updates_of, written

OF_OTHERS = (HEADER, "format", "sources", "ss_network_module", "ss_network_dim", "ss_network_alpha")  # not carried back


def import_lora(path: Path, base: Path, out: Path, dtype: str | None = None, overwrite: bool = False) -> None:
    """Write a LoRA of another program, a file or folder, as one of ours, for models of the size of `base`.

    Which model it was trained on is known only if we exported it. Raise ValueError, in one sentence, for other kinds of
    adapters and for names or shapes without a place in `base`.
    """
    config = config_of_base(base, out, overwrite, path)
    source = open_lora(path)
    updates, pieces = read_lora(source, config)
    metadata = write_lora(out, source, plainest(updates, layers(config)), pieces, dtype)
    print(f"{path}: {updates_of(updates)}")
    print("\n".join(f"  read {file}  sha256 {digest}" for file, digest in source.hashes.items()))
    words = bundled_words(source)
    if words:
        note(
            f"{path}: left out {len(words)} bundled embeddings ({', '.join(map(shown, words[:3]))}): in a prompt here "
            "these are plain words."
        )
    if metadata["base_sha256"] == UNKNOWN_BASE:
        print(f"  it does not say what it was trained on: apply it to any model of the size of {config.name}")
    print(f"wrote {out}  {written(out)}")


def config_of_base(base: Path, out: Path, overwrite: bool, path: Path) -> ModelConfig:
    """The config of --base, after a check of the place for the result."""
    check_result_file(out, ".safetensors", overwrite, [path, base])
    sizes = open_source(base)
    if "config" not in sizes.metadata:
        raise ValueError(f"--base {base}: not a model file of ours. Give one that train.py or weights_convert wrote.")
    return choose_config(sizes, preset=None)


def write_lora(
    out: Path, source: Source, lora: LoRAConfig, pieces: Sequence[Piece], dtype: str | None
) -> dict[str, str]:
    """Write a LoRA file of ours; -> its metadata."""
    sources = [{"file": file.name, "sha256": digest} for file, digest in source.hashes.items()]
    metadata = {key: value for key, value in source.metadata.items() if key not in OF_OTHERS}
    if "base_sha256" not in metadata:  # the history of a LoRA that we exported is carried on
        metadata = {"base_sha256": UNKNOWN_BASE}
    metadata |= {
        "ldm_us": ldm_us.__version__,
        "lora": json.dumps(dataclasses.asdict(lora)),
        "sources": json.dumps(sources),
    }
    with full_disk_is_an_error_of_input(out):
        write_safetensors(out, [lazy(piece, DTYPES.get(dtype or "")) for piece in pieces], metadata)
    return metadata


def read_lora(source: Source, config: ModelConfig) -> tuple[list[Update], list[Piece]]:
    """Give every tensor its place in a model of this config. Raise ValueError, in one sentence, where one has none."""
    if "lora" in source.metadata and "base_sha256" in source.metadata:
        raise ValueError(f"{source.path}: a LoRA of ours already. Give it to sample.py --lora as it is.")
    refuse_kinds(source, config.unet.context_width)
    keys, unknown = sort_keys(source, spellings(config))
    alphas = alphas_of(source, keys)
    if unknown or not keys:
        listed = ", ".join(unknown[:3]) or "none at all"
        raise ValueError(
            f"{source.path}: {len(unknown)} of {len(source.entries)} names belong to no layer of {config.name} "
            f"({listed}). {PLAIN}, with --base a model of the size they were trained for."
        )
    shapes = layers(config)
    updates, pieces = [], []
    for module in (module for module in shapes if module in keys):  # in the order of the model
        key = keys[module]
        updates.append(read_update(source, module, key, alphas.get(module)))
        ours = update_shapes(updates[-1], shapes[module]).items()
        for kind, (target, shape) in zip(("down", "up"), ours, strict=True):
            pieces.append(piece(source, key[kind], target, shape))
    return updates, pieces


def sort_keys(source: Source, ours: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Our module -> {"down", "up" or "alpha": name in the source}, and the names that belong to no module of `ours`.

    Bundled embeddings are in neither. Raise ValueError for a tensor that is there in two spellings.
    """
    keys: dict[str, dict[str, str]] = {}
    unknown = []
    for name in source.entries:
        module, kind = split_name(name) or ("", "")
        if module in ours and keys.setdefault(ours[module], {}).setdefault(kind, name) != name:
            raise ValueError(f"{source.path}: {name} and {keys[ours[module]][kind]} are the same tensor. Remove one.")
        if module not in ours and not name.startswith(BUNDLED):
            unknown.append(name)
    return keys, unknown


def read_update(source: Source, module: str, key: Mapping[str, str], alpha: float | None) -> Update:
    """Rank and alpha of one update; alpha None: its own tensor, in kohya's names, or else the rank."""
    if not {"down", "up"} <= key.keys():
        raise ValueError(f"{source.path}: {min(key.values())} lacks its other matrix. Copy the LoRA again.")
    entry = source.entries[key["down"]]
    rank = entry.shape[0] if entry.shape else 0
    if "alpha" in key:
        alpha_entry = source.entries[key["alpha"]]
        if math.prod(alpha_entry.shape) != 1:
            raise ValueError(f"{source.path}: {key['alpha']} is {list(alpha_entry.shape)}, not one number.")
        alpha = float(alpha_entry.load().to(torch.float64))
    alpha = float(rank) if alpha is None else alpha
    if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{source.path}: {key['down']} has rank {rank} and alpha {alpha}. Both must be above 0.")
    return Update(module, rank, alpha)


def piece(source: Source, key: str, target: str, shape: tuple[int, ...]) -> Piece:
    """One matrix. A linear layer and a convolution of 1 x 1 are the same map, so either shape does for both."""
    entry = source.entries[key]
    if _matrix(entry.shape) != _matrix(shape) or not entry.dtype.is_floating_point:
        found, expected = type_and_shape(entry), list(shape)
        raise ValueError(f"{source.path}: {key} is {found}, not {expected}. Give --base the size of its model.")
    return Piece(target, shape, source.path, key, entry)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def plainest(updates: Sequence[Update], shapes: Iterable[str]) -> LoRAConfig:
    """One rank and alpha for whole kinds of projections, as train.py makes LoRAs, or else module by module."""
    modules = {update.module for update in updates}
    parts = tuple(part for part in LORA_PARTS if any(module.startswith(f"{part}.") for module in modules))
    kinds = {kind_of(module) for module in modules}
    every = {kind_of(name) for name in shapes if name.split(".")[0] in parts and kind_of(name)}
    covered = {name for name in shapes if name.split(".")[0] in parts and kind_of(name) in kinds}
    if len({update[1:] for update in updates}) > 1 or covered != modules or "" in kinds:
        return LoRAConfig(parts=(), modules=tuple(updates))
    targets: list[str] = []
    for projection in PROJECTIONS:
        own = {kind for kind in kinds if kind.endswith(f".{projection}")}
        whole = own == {kind for kind in every if kind.endswith(f".{projection}")}
        targets += [projection] if whole else sorted(own)
    return LoRAConfig(updates[0].rank, updates[0].alpha, parts, tuple(targets))


def kind_of(module: str) -> str:
    """ "cross.q" of a cross_attention.to_q, "" of what is no projection of an attention."""
    attention, _, projection = module.rpartition(".to_")
    if not attention.endswith("attention"):
        return ""
    return f"{'cross' if attention.endswith('cross_attention') else 'self'}.{projection}"
