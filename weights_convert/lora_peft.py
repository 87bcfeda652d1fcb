"""PEFT's LoRAs: its own folders, and its LoraConfig, which alone says what alpha is.

    FOLDER/adapter_config.json          LoraConfig: r, lora_alpha, alpha_pattern, use_rslora, ...
    FOLDER/adapter_model.safetensors    base_model.model.<module>.lora_A.weight, or .lora_A.<adapter>.weight
A folder is the adapter of one network: of a UNet and a text encoder there are two, and sample.py takes both. diffusers
keeps the same LoraConfig in the header of its one file, under HEADER, with the component before every field.
Sources, of peft 0.21: tuners/lora/config.py, get_peft_model_state_dict, and get_pattern_key for alpha_pattern.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_us.files.originals import ADAPTER_CONFIG as CONFIG
from ldm_us.files.originals import LORA_FILES, option_for
from weights_convert.lora_kinds import WAY_ROUND
from weights_convert.lora_names import HEADER, LORA_PARTS, split_name
from weights_convert.sources import Source, open_source, read_json

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
START = "base_model.model."  # before every name of PEFT's file
OF_TEXT = ("text_model.", "encoder.layers.")  # how the names of a text encoder start; all others are of a UNet

MORE_THAN_LORA = (  # fields of LoraConfig that add to W + B A, or change what B A is
    *("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "fan_in_fan_out", "alora_invocation_tokens", "arrow_config", "use_bdlora", "use_qalora"),
    *("kasa_config", "monteclora_config"),
)
# Starting values that leave the model's own weights as they were. All others (pissa, olora, corda, loftq, lora_ga)
# change those too, so the adapter without that changed model is another one.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


def open_lora(path: Path) -> Source:
    """A LoRA: a file, diffusers' folder or PEFT's; what PEFT wrote with the names and the header of diffusers."""
    if path.name in ADAPTER_FILES and (path.parent / CONFIG).is_file():
        path = path.parent
    if (path / CONFIG).is_file():
        return open_adapter(path)
    if path.is_dir() and not is_lora_folder(path):
        raise ValueError(f"{path}: no LoRA in this folder. Give one with {CONFIG} (PEFT) or {LORA_FILES[0]}.")
    source = open_source(next((path / name for name in LORA_FILES if (path / name).is_file()), path))
    if any(name.startswith(START) for name in source.entries):
        raise ValueError(f"{path}: PEFT's weights without {CONFIG}, which says what alpha is. Put it beside them.")
    return source


def is_lora_folder(path: Path) -> bool:
    """Whether a folder holds a LoRA of diffusers or PEFT."""
    return option_for(path) == "--lora"


def open_adapter(folder: Path) -> Source:
    """PEFT's folder of one network. Raise ValueError for an adapter that is no LoRA."""
    settings = read_json(folder / CONFIG)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG}: an adapter of type {settings.get('peft_type')}, not a LoRA.")
    weights = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"{folder}: {CONFIG} without {ADAPTER_FILES[0]} beside it. Put it there.")
    source = open_source(weights)
    names = {name.removeprefix(START): entry for name, entry in source.entries.items()}
    start = LORA_PARTS["text" if any(name.startswith(OF_TEXT) for name in names) else "unet"]
    header = json.dumps({f"{start}{field}": value for field, value in settings.items()})
    entries = {f"{start}{name}": entry for name, entry in names.items()}
    return replace(source, path=folder, entries=entries, metadata={HEADER: header})


def alphas_of(source: Source, keys: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The alpha that the LoraConfig gives to every module. `keys`: our module -> {"down": name in the source}.

    Raise ValueError for a LoraConfig that cannot be read, or of more than a LoRA.
    """
    if HEADER not in source.metadata:
        return {}
    alphas: dict[str, float] = {}
    try:
        settings: dict[str, Any] = json.loads(source.metadata[HEADER])
        for part, start in LORA_PARTS.items():
            refuse_more(settings, start)
            own = [module for module, key in keys.items() if module.startswith(f"{part}.") and "down" in key]
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
        place = CONFIG if source.path.is_dir() else f"{HEADER} in its header"
        reason = error if type(error) is ValueError else repr(error)
        raise ValueError(f"{source.path}: {place} cannot be used: {reason}. {WAY_ROUND}") from error
    return alphas


def refuse_more(settings: Mapping[str, Any], start: str) -> None:
    """Raise ValueError for a LoraConfig of more than a LoRA, naming the field."""
    more = [field for field in MORE_THAN_LORA if settings.get(start + field)]
    more += ["init_lora_weights"] * (settings.get(f"{start}init_lora_weights") not in PLAIN_STARTS)
    if more:
        raise ValueError(f"{more[0]} {settings[start + more[0]]!r} makes it more than a LoRA")


def stands_for(pattern: str, name: str) -> bool:
    """Whether a key of PEFT's alpha_pattern is the name of a module or the end of it; ^ asks for the whole name."""
    return pattern == f"^{name}" or f".{name}".endswith(f".{pattern}")
