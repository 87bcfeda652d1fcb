"""Adapters that are no plain LoRA of Stable Diffusion 1.x, told by their names, and what is left out of one that is.

Sources: networks/ of kohya-ss/sd-scripts, lycoris/modules of KohakuBlueleaf/LyCORIS, tuners/ of peft; a control-LoRA is
told as ComfyUI tells it.
"""

import re
from fnmatch import fnmatchcase

from ldm_us.config import SD15
from weights_convert.sources import Source

XL, V2, V3 = (f"a Stable Diffusion {version} model" for version in ("XL", "2.x", "3"))
FLUX = "a Flux model"
LORA = "a LoRA, not a whole model (import --lora takes it)"
CONTROL_LORA = "a control-LoRA: a ControlNet as an update of low rank of a UNet. Take the full ControlNet instead"
CONTROL_LORA_NAMES = ("lora_controlnet", "*input_blocks.1.0.in_layers.2.up", "*input_blocks.1.1.proj_in.up")
EMBEDDING = "a textual inversion (import --embedding takes it)"
FOREIGN_CONTEXT_WIDTHS = {1024: V2, 2048: XL}  # columns of every *attn2.to_k.weight; 768 in 1.x
TO_K = re.compile(r"attn2[._](processor\.)?to_k.*(_A|down)\.")  # of its matrix A, in any spelling

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
    ("lycoris_*", "an adapter in the names of LyCORIS"),
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
        if len(entry.shape) < 2 or not TO_K.search(name):
            continue
        if entry.shape[1] != context_width and entry.shape[1] in FOREIGN_CONTEXT_WIDTHS:
            raise ValueError(f"{source.path}: a LoRA of {FOREIGN_CONTEXT_WIDTHS[entry.shape[1]]} ({name}). {PLAIN}.")


def is_embedding(source: Source) -> bool:
    """Whether a file is the vectors of one word alone: <word>, as A1111's web UI names them, or of the text width."""
    if len(source.entries) != 1:
        return False
    ((name, entry),) = source.entries.items()
    of_width = len(entry.shape) in (1, 2) and entry.shape[-1] in (SD15.text.width, *FOREIGN_CONTEXT_WIDTHS)
    return name == "emb_params" or name[:1] == "<" or (of_width and "." not in name and entry.dtype.is_floating_point)


def bundled_words(source: Source) -> list[str]:
    """The words of the textual inversions that are bundled with a LoRA."""
    names = (name.removeprefix(BUNDLED) for name in source.entries if name.startswith(BUNDLED))
    return list(dict.fromkeys(name.split(".")[0] for name in names))
