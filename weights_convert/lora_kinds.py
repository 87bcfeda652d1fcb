"""Adapters that are no plain LoRA of Stable Diffusion 1.x, told by their names, and what is left out of one that is.

Sources: networks/ of kohya-ss/sd-scripts, lycoris/modules of KohakuBlueleaf/LyCORIS, tuners/ of peft; a control-LoRA is
told as ComfyUI tells it.
"""

from fnmatch import fnmatchcase

from weights_convert.detect import (
    CONTROL_LORA,
    CONTROL_LORA_NAMES,
    EMBEDDING,
    FLUX,
    FOREIGN_CONTEXT_WIDTHS,
    V3,
    XL,
    is_embedding,
)
from weights_convert.lora_names import split_name
from weights_convert.sources import Source

PLAIN = "Only plain LoRAs of Stable Diffusion 1.x can be imported: matrices A and B of linear layers and convolutions"
WAY_ROUND = "Merge it into a whole model with the program that made it, and import that model."

FAMILIES = (  # a pattern for fnmatch -> what has such names
    *((name, CONTROL_LORA) for name in CONTROL_LORA_NAMES),
    ("lllite_*", "a ControlNet-LLLite, a kind of ControlNet that there is no place for here"),
    ("lora_te2_*", f"a LoRA of {XL}"),
    ("text_encoder_2.*", f"a LoRA of {XL}"),
    ("*joint_blocks*", f"a LoRA of {V3}"),
    ("*double_blocks*", f"a LoRA of {FLUX}"),
    ("*single_transformer_blocks*", f"a LoRA of {FLUX}"),
    ("transformer.*", "a LoRA of a Stable Diffusion 3 or Flux model"),
)
KINDS = (
    ("*.dora_scale", "a DoRA: it scales the columns of the weights as well"),
    ("*.lora_magnitude_vector*", "a DoRA: it scales the columns of the weights as well"),
    ("*.hada_w*", "a LoHa: a product of two updates, entry by entry"),
    ("*.lokr_*", "a LoKr: a Kronecker product"),
    ("*.lora_mid.weight", "a LoCon with a Tucker decomposition: three matrices in place of two"),
    ("*.oft_*", "an OFT: it rotates the weights"),
    ("*.on_input", "an IA3: it scales what layers take or give"),
    ("*.ia3_l*", "an IA3: it scales what layers take or give"),
    ("*.diff", "weights trained whole"),
    ("*.diff_b", "biases trained whole"),
    ("*.[wb]_norm", "norms trained whole"),
    ("*.lora_embedding_?*", "a LoRA of embeddings"),
    ("*.lora_B.bias", "a LoRA with biases"),
    ("*.base_layer.bias", "biases trained whole"),
)
BUNDLED = "bundle_emb."  # bundle_emb.<word>.<tensor>: a textual inversion beside the LoRA


def refuse_kinds(source: Source, context_width: int) -> None:
    """Raise ValueError for adapters of another kind or of another family of models."""
    if is_embedding(source):
        raise ValueError(f"{source.path}: {EMBEDDING}.")
    for kinds, advice in ((FAMILIES, f"{PLAIN}."), (KINDS, f"{PLAIN}. {WAY_ROUND}")):
        for pattern, what in kinds:
            names = [name for name in source.entries if fnmatchcase(name, pattern) and not name.startswith(BUNDLED)]
            if names:
                raise ValueError(f"{source.path}: {what} ({len(names)} tensors such as {names[0]}). {advice}")
    for name, entry in source.entries.items():
        module, kind = split_name(name) or ("", "")
        if kind != "down" or not module.endswith(("attn2_to_k", "attn2.to_k")) or len(entry.shape) < 2:
            continue
        if entry.shape[1] != context_width and entry.shape[1] in FOREIGN_CONTEXT_WIDTHS:
            raise ValueError(f"{source.path}: a LoRA of {FOREIGN_CONTEXT_WIDTHS[entry.shape[1]]} ({name}). {PLAIN}.")


def bundled_words(source: Source) -> list[str]:
    """The words of the textual inversions that are bundled with a LoRA."""
    names = (name.removeprefix(BUNDLED) for name in source.entries if name.startswith(BUNDLED))
    return list(dict.fromkeys(name.split(".")[0] for name in names))
