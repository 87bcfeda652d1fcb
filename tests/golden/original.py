"""Checkpoints in the original formats, filled by fill.py; names and sizes are taken from sd15_layouts.json, not from
weights_convert, so that they can prove it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.golden.fill import weight

LAYOUTS = json.loads((Path(__file__).parent / "sd15_layouts.json").read_text(encoding="utf-8"))
PREFIXES = {
    "unet": "model.diffusion_model.",
    "controlnet": "control_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.text_model.",
}


def shapes(layout, size):
    """Name -> shape of one layout at the size "sd15" or "tiny"."""
    if size == "sd15":
        return {key: tuple(shape) for key, shape in LAYOUTS[layout].items()}
    deep = re.compile(r"(encoder\.layers|resblocks)\.([2-9]|1\d)\.")  # tiny has two layers of CLIP
    return {key: _tiny(layout, key, shape) for key, shape in LAYOUTS[layout].items() if not deep.search(key)}


def _tiny(layout, key, shape):
    if "text" in layout or key.startswith("cond_stage_model"):
        return tuple({768: 32, 2304: 96, 3072: 128}.get(size, size) for size in shape)
    if "vae" in layout or key.startswith("first_stage_model"):
        return tuple(size // 4 if size >= 128 else size for size in shape)
    if re.search(r"attn2\.to_[kv]", key):
        return (shape[0] // 10, 32)
    return tuple(size // 10 if size >= 320 else size for size in shape)


def filled(layout, size, part=None):
    """Name -> tensor of one layout, or of one part of it; two threads, because sd15 takes long."""
    wanted = {key: shape for key, shape in shapes(layout, size).items() if key.startswith(PREFIXES.get(part, ""))}
    with ThreadPoolExecutor(2) as pool:
        values = pool.map(weight, wanted.keys(), wanted.values())
        return {key: torch.from_numpy(value) for key, value in zip(wanted, values, strict=True)}


@cache
def _tiny_compvis():
    return filled("compvis_single_file", "tiny") | filled("lllyasviel_controlnet", "tiny")


def tiny_compvis(*parts):
    """The tiny model as one CompVis file holds it, or some of its parts (a new dictionary)."""
    starts = tuple(PREFIXES[part] for part in parts)
    return {key: value for key, value in _tiny_compvis().items() if key.startswith(starts or "")}


RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "nin_shortcut": "conv_shortcut",
}
UNET = (  # a pattern, and what it becomes, by arithmetic on the block's number
    (r"^time_embed\.0", lambda m: "time_embedding.linear_1"),
    (r"^time_embed\.2", lambda m: "time_embedding.linear_2"),
    (r"^input_blocks\.0\.0", lambda m: "conv_in"),
    (r"^input_blocks\.(\d+)\.0\.op", lambda m: f"down_blocks.{int(m[1]) // 3 - 1}.downsamplers.0.conv"),
    (
        r"^input_blocks\.(\d+)\.(\d)",
        lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.{_kind(m[2])}.{(int(m[1]) - 1) % 3}",
    ),
    (r"^middle_block\.1", lambda m: "mid_block.attentions.0"),
    (r"^middle_block\.([02])", lambda m: f"mid_block.resnets.{int(m[1]) // 2}"),
    (r"^output_blocks\.(\d+)\.\d\.conv", lambda m: f"up_blocks.{int(m[1]) // 3}.upsamplers.0.conv"),
    (r"^output_blocks\.(\d+)\.(\d)", lambda m: f"up_blocks.{int(m[1]) // 3}.{_kind(m[2])}.{int(m[1]) % 3}"),
    (r"^out\.0", lambda m: "conv_norm_out"),
    (r"^out\.2", lambda m: "conv_out"),
    (r"^zero_convs\.(\d+)\.0", lambda m: f"controlnet_down_blocks.{m[1]}"),
    (r"^middle_block_out\.0", lambda m: "controlnet_mid_block"),
    (r"^input_hint_block\.0", lambda m: "controlnet_cond_embedding.conv_in"),
    (r"^input_hint_block\.14", lambda m: "controlnet_cond_embedding.conv_out"),
    (r"^input_hint_block\.(\d+)", lambda m: f"controlnet_cond_embedding.blocks.{int(m[1]) // 2 - 1}"),
)
VAE = (
    (r"down\.(\d)\.block\.", lambda m: f"down_blocks.{m[1]}.resnets."),
    (r"down\.(\d)\.downsample", lambda m: f"down_blocks.{m[1]}.downsamplers.0"),
    (r"up\.(\d)\.block\.", lambda m: f"up_blocks.{3 - int(m[1])}.resnets."),
    (r"up\.(\d)\.upsample", lambda m: f"up_blocks.{3 - int(m[1])}.upsamplers.0"),
    (r"mid\.block_([12])", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"norm_out", lambda m: "conv_norm_out"),
    (r"attn_1\.norm", lambda m: "attn_1.group_norm"),
    (r"mid\.attn_1", lambda m: "mid_block.attentions.0"),
)
NEW_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def _kind(place):
    return "resnets" if place == "0" else "attentions"


def diffusers_name(part, name, old=False):
    """A CompVis name without its prefix -> the name in diffusers, as diffusers' own conversion script counts."""
    for pattern, replacement in VAE if part == "vae" else UNET if part != "text" else ():
        name, found = re.subn(pattern, replacement, name)
        if found and part != "vae":
            break
    if part == "text":
        return f"text_model.{name}"
    if part == "vae" and (found := re.search(r"attentions\.0\.(q|k|v|proj_out)\.", name)):
        return name.replace(f".{found[1]}.", f".{(OLD_ATTENTION if old else NEW_ATTENTION)[found[1]]}.")
    found = re.search("|".join(map(re.escape, RES_BLOCK)), name)
    return name if found is None else name.replace(found[0], RES_BLOCK[found[0]])


def to_diffusers(state_dict, part, old=False):
    """One part of a CompVis file -> the state dict of that component of a diffusers folder."""
    converted = {}
    for key, value in state_dict.items():
        if key.startswith(PREFIXES[part]):
            linear = part == "vae" and re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)
            name = diffusers_name(part, key.removeprefix(PREFIXES[part]), old)
            converted[name] = value[:, :, 0, 0].contiguous() if linear else value
    return converted


def to_open_clip(state_dict):
    """The text encoder of a CompVis file -> a file of open_clip's text tower, with what else such a file holds."""
    text = {key.removeprefix(PREFIXES["text"]): value for key, value in state_dict.items()}
    converted = {
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": torch.zeros(32, 32),
        "logit_scale": torch.zeros(()),
        "attn_mask": torch.zeros(77, 77),
        "visual.proj": torch.zeros(2, 2),
    }
    names = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    for layer in ("0", "1"):
        theirs, ours = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [text[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            converted[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
            converted |= {f"{ours}.{b}.{kind}": text[f"{theirs}.{a}.{kind}"] for a, b in names.items()}
    return converted


def write_tiny_files(folder):
    """A model, a ControlNet and a text tower as the three files that an import may be given."""
    save_file(tiny_compvis("vae", "text", "unet"), folder / "model.safetensors")
    torch.save(tiny_compvis("controlnet"), folder / "control.pth")
    save_file(to_open_clip(tiny_compvis("text")), folder / "clip.safetensors")
    return folder
