"""Weights of other programs, where a file of ours is asked for: what a folder holds, and the command that takes it."""

import shlex
from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's settings
LORA_FILES = tuple(f"pytorch_lora_weights{end}" for end in (".safetensors", ".bin"))  # where diffusers looks
EMBEDDING_FILES = tuple(f"learned_embeds{end}" for end in (".safetensors", ".bin"))
CLASSES = {"ControlNetModel": "--controlnet", "AutoencoderKL": "--vae", "CLIPTextModel": "--text"}  # in config.json
WHAT = {"--lora": "LoRA", "--embedding": "textual inversion"} | {option: name for name, option in CLASSES.items()}
MOST_READ = 1 << 16  # characters of a config.json


def option_for(folder: Path) -> str:
    """The option of an import that takes what a folder holds, one of WHAT; "" for a whole model or none of them."""
    if any((folder / name).is_file() for name in (ADAPTER_CONFIG, *LORA_FILES)):
        return "--lora"
    if any((folder / name).is_file() for name in EMBEDDING_FILES):
        return "--embedding"
    config = folder / "config.json"
    text = ""
    if config.is_file():
        with config.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_READ)
    return next((option for name, option in CLASSES.items() if f'"{name}"' in text), "")


def import_command(path: Path | str, option: str = "") -> str:
    """The command that makes a file of ours from original weights, whole (option "") or of a kind."""
    source = shlex.quote(str(path))
    if option in ("--lora", "--embedding"):
        return f"`python -m weights_convert import {option} {source} --base MODEL --out lora.safetensors`"
    source = f"MODEL {option} {source}" if option else source
    return f"`python -m weights_convert import {source} --out model.safetensors`"


def advice(folder: Path, otherwise: str = "") -> str:
    """How a file of ours is made of a folder; `otherwise` is the option for one that does not say what it is."""
    option = option_for(folder) or otherwise
    if not option:
        return f"Of a diffusers folder {import_command(folder)} makes one."
    return f"{import_command(folder, option)} makes a file with its {WHAT[option]}."
