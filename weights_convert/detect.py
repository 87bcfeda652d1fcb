"""Which model a file holds, told from the names and shapes of its tensors."""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from ldm_us.config import SD15
from ldm_us.files.checkpoint import PARTS
from weights_convert.lora_kinds import (
    CONTROL_LORA,
    CONTROL_LORA_NAMES,
    EMBEDDING,
    FLUX,
    FOREIGN_CONTEXT_WIDTHS,
    LORA,
    V2,
    V3,
    XL,
    is_embedding,
    refuse_kinds,
)
from weights_convert.rules import Layout
from weights_convert.sources import Source

SUPPORTED = (
    "Supported are Stable Diffusion 1.x models (CompVis file or diffusers folder), their ControlNets (lllyasviel or "
    "diffusers), their autoencoders and CLIP ViT-L/14 text encoders."
)

CLIP = "cond_stage_model.transformer."
# A name that starts so -> the layout of that part; the first match of a part counts.
SIGNATURES = (
    ("model.diffusion_model.", Layout("unet", "compvis", "model.diffusion_model.")),
    ("model_ema.diffusion_model", Layout("unet", "compvis", "model_ema.diffusion_model", ema=True)),  # and no UNet
    ("first_stage_model.", Layout("vae", "compvis", "first_stage_model.")),
    (f"{CLIP}text_model.", Layout("text", "transformers", f"{CLIP}text_model.")),
    (CLIP, Layout("text", "transformers", CLIP)),
    ("control_model.", Layout("controlnet", "compvis", "control_model.")),
    ("input_hint_block.", Layout("controlnet", "compvis", "")),
    ("controlnet_cond_embedding.", Layout("controlnet", "diffusers", "")),
    ("up_blocks.", Layout("unet", "diffusers", "")),
    ("encoder.mid_block.attentions.0.query.", Layout("vae", "diffusers_old", "")),
    ("encoder.down_blocks.", Layout("vae", "diffusers", "")),
    ("encoder.down.", Layout("vae", "compvis", "")),
    ("text_model.", Layout("text", "transformers", "text_model.")),
    ("encoder.layers.", Layout("text", "transformers", "")),
    ("transformer.resblocks.", Layout("text", "open_clip", "")),
    *((f"{part}.", Layout(part, "ours", f"{part}.")) for part in PARTS),
)

FOREIGN_NAMES = (  # a pattern for fnmatch -> what has such names
    *((name, CONTROL_LORA) for name in CONTROL_LORA_NAMES),
    ("conditioner.embedders.*", XL),
    ("*label_emb.*", XL),
    ("*add_embedding.*", XL),
    ("cond_stage_model.model.*", V2),
    ("*joint_blocks.*", V3),
    ("*double_blocks.*", FLUX),
    ("single_transformer_blocks.*", FLUX),
    ("*lora_*", LORA),
    ("*.lora.*", LORA),
    ("*_lora.*", LORA),
    *((f"{start}*", LORA) for start in ("lycoris_", "oft_")),
    *((f"*.{kind}*", LORA) for kind in ("hada_w", "lokr_", "oft_")),
)
FOREIGN_FOLDERS = (
    ("text_encoder_2", XL),
    ("text_encoder_3", V3),
    ("transformer", "a Stable Diffusion 3 or Flux model"),
)
FOREIGN_INPUT_CHANNELS = {  # 4 in 1.x
    9: "an inpainting model with 9 input channels",
    8: "an instruct-pix2pix model with 8 input channels",
}


def detect(source: Source) -> list[Layout]:
    """The layout of every part in the source. Raise ValueError, with the name, for what is no Stable Diffusion 1.x."""
    family = next(foreign_families(source), None)
    if family == LORA:
        refuse_kinds(source, SD15.unet.context_width)  # what no --lora takes is named as such
    if family is not None:
        raise ValueError(f"{source.path}: this is {family}. {SUPPORTED}")
    found: dict[str, Layout] = {}
    for start, layout in SIGNATURES:
        folder = next((_folder(name) for name in source.entries if name[len(_folder(name)) :].startswith(start)), None)
        if folder is not None and layout.part not in found:
            found[layout.part] = replace(layout, prefix=folder + layout.prefix)
    if not found:
        names = ", ".join(list(source.entries)[:3]) or "none at all"
        raise ValueError(f"{source.path}: no known model has these tensors: {names}. {SUPPORTED}")
    return [found[part] for part in PARTS if part in found]


def _folder(name: str) -> str:
    """ "unet/" of "unet/conv_in.weight", "" of "conv_in.weight"."""
    return name[: name.find("/") + 1]


def foreign_families(source: Source) -> Iterator[str]:
    """What cannot be imported, told from folders, then names, then shapes."""
    if is_embedding(source):
        yield EMBEDDING
    yield from (family for folder, family in FOREIGN_FOLDERS if (source.path / folder).is_dir())
    for pattern, family in FOREIGN_NAMES:
        if any(fnmatchcase(name, pattern) for name in source.entries):
            yield family
    for name, entry in source.entries.items():
        columns, channels = (entry.shape[-1], entry.shape[1]) if len(entry.shape) > 1 else (0, 0)
        if name.endswith("attn2.to_k.weight") and columns in FOREIGN_CONTEXT_WIDTHS:
            yield FOREIGN_CONTEXT_WIDTHS[columns]
        first = name.endswith("input_blocks.0.0.weight") or name in ("conv_in.weight", "unet/conv_in.weight")
        if first and channels in FOREIGN_INPUT_CHANNELS:
            yield FOREIGN_INPUT_CHANNELS[channels]
