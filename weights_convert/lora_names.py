"""The names that diffusers and kohya's scripts give to the modules of a LoRA, both ways, from the tables of rules.py.

    ours       unet.encoder.levels.0.transformers.0.block.self_attention.to_q.lora_down.weight
    diffusers  unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    kohya      lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight, and .alpha

AUTOMATIC1111's web UI, Forge and ComfyUI read kohya's. Sources: networks/lora.py of kohya-ss/sd-scripts; of diffusers
0.42 loaders/lora_conversion_utils.py and utils/state_dict_utils.py, which list its older spellings too.
"""

import re
from collections.abc import Iterable

from ldm_us.config import SD15, ModelConfig
from weights_convert.convert import target_shapes
from weights_convert.expansion import named_rows
from weights_convert.rules import Layout

LORA_PARTS = {"unet": "unet.", "text": "text_encoder."}  # what such LoRAs update -> what stands before it in diffusers
HEADER = "lora_adapter_metadata"  # where diffusers >= 0.34 keeps rank and alpha: PEFT's LoraConfig of each component

# How a naming writes the parts: first the two layouts that we write, then those that others have written.
LAYOUTS = {
    "diffusers": (
        Layout("unet", "diffusers", "unet."),
        Layout("text", "transformers", "text_encoder.text_model."),
        Layout("unet", "diffusers", ""),  # UNet2DConditionModel.save_attn_procs
        Layout("text", "transformers", "text_encoder."),  # transformers 5, where CLIPTextModel has no text_model
    ),
    "kohya": (
        Layout("unet", "diffusers", "lora_unet_"),
        Layout("text", "transformers", "lora_te_text_model_"),
        Layout("unet", "compvis", "lora_unet_"),
        Layout("text", "transformers", "lora_te1_text_model_"),  # the first text encoder of programs that know two
    ),
}


ENDS = {  # what stands behind the name of a module: A, B, and alpha where it is a tensor
    "diffusers": {"down": ".lora_A.weight", "up": ".lora_B.weight"},
    "kohya": {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"},
}
OTHER_ENDS = (  # diffusers before PEFT, the newest first
    {"down": ".lora.down.weight", "up": ".lora.up.weight"},
    {"down": ".lora_linear_layer.down.weight", "up": ".lora_linear_layer.up.weight"},
    {"down": "_lora.down.weight", "up": "_lora.up.weight"},  # behind attn1.processor.to_q
)


def names_of(modules: Iterable[str], naming: str) -> dict[str, str]:
    """Our modules -> their names in the naming "diffusers" or "kohya". Raise ValueError for one that has none there.

    The names do not depend on the widths of a model, so those of SD 1.5, the deepest one, hold for all.
    """
    unet, text = (module_names(SD15, layout) for layout in LAYOUTS[naming][:2])
    names, wanted = unet | text, set(modules)
    if not wanted <= names.keys():
        raise ValueError(f"{min(wanted - names.keys())}: the names of {naming} have none for this module.")
    return {module: names[module] for module in wanted}


def module_names(config: ModelConfig, layout: Layout) -> dict[str, str]:
    """Every module of one part, and some that this config does not have -> its name in a layout."""
    names = {f"{layout.part}.{ours}": f"{layout.prefix}{theirs}" for ours, theirs in named_rows(config, layout)}
    if layout.prefix.startswith("lora_"):
        return {ours: theirs.replace(".", "_") for ours, theirs in names.items()}
    return names


def spellings(config: ModelConfig) -> dict[str, str]:
    """Every name that a LoRA of another program may have for a module of this model -> our module."""
    found: dict[str, str] = {}
    known = layers(config)
    for naming, layouts in LAYOUTS.items():
        for layout in layouts:
            names = module_names(config, layout)
            for ours, theirs in ((ours, names[ours]) for ours in known if ours in names):
                found[theirs] = ours
                attention, _, projection = ours.rpartition(".")
                if naming == "diffusers" and attention.endswith("attention"):
                    found[f"{theirs.removesuffix('.0').rpartition('.')[0]}.{projection}"] = ours  # behind a processor
    return found


def layers(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every linear layer and convolution of UNet and text encoder -> the shape of its weight."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in target_shapes(config).items()
        if name.split(".")[0] in LORA_PARTS
        and name.endswith(".weight")
        and len(shape) > 1
        and "_embedding." not in name
    }


def split_name(name: str) -> tuple[str, str] | None:
    """A tensor's name -> its module, and which of "down", "up", "alpha" it is; None if it is no part of an update."""
    name = re.sub(r"\.lora_([AB])\.\w+\.weight$", r".lora_\1.weight", name)  # PEFT's, with the name of an adapter
    for ends in (*ENDS.values(), *OTHER_ENDS):
        for kind, end in ends.items():
            if name.endswith(end):
                return name.removesuffix(end).replace(".processor.", "."), kind
    return None
