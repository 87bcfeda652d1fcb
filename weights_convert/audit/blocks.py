"""Where a tensor of ours stands: its block, in the order in which the network runs, and its kind of layer."""

import re

from ldm_us.files.checkpoint import PARTS

# What a name starts with -> the block, those of each part in the order of the forward pass; the first match counts.
BLOCKS = (
    (r"text\.(?:token|position)_embedding|text\.prompt", "embeddings"),
    (r"text\.blocks\.(\d+)", "block {}"),
    (r"text\.norm_out", "out"),
    (r"\w+\.time\.", "time embedding"),
    (r"\w+\.encoder\.conv_in", "encoder in"),
    (r"controlnet\.hint_network\.", "hint network"),
    (r"\w+\.encoder\.(?:levels|downs)\.(\d+)", "encoder level {}"),
    (r"\w+\.middle\.", "middle"),
    (r"vae\.encoder\.middle", "encoder middle"),
    (r"vae\.(?:encoder\.(?:norm|conv)_out|quant_conv)", "encoder out"),
    (r"vae\.(?:post_quant_conv|decoder\.conv_in)", "decoder in"),
    (r"vae\.decoder\.middle", "decoder middle"),
    (r"\w+\.decoder\.(?:levels|ups)\.(\d+)", "decoder level {}"),
    (r"vae\.decoder\.noise_gains", "decoder noise"),
    (r"vae\.decoder\.(?:norm|conv)_out", "decoder out"),
    (r"unet\.decoder\.(?:norm|conv)_out", "out"),
    (r"controlnet\.zero_conv", "zero convolutions"),
    (r"prior\.|grain\.", "measured"),
)

KINDS = (  # a pattern in the name -> the kind of layer; the first match counts
    (r"cross_attention", "cross-attention"),
    (r"attention\.to_", "self-attention"),
    (r"feed_forward|mlp_", "feed-forward"),
    (r"norm", "norm"),
    (r"conv|skip|hint_network|downs|ups", "convolution"),
    (r"", "other"),
)
KIND_NAMES = tuple(kind for _, kind in KINDS)

WITHIN = re.compile(r"levels\.\d+\.(?:\w+\.)?(\d+)\.")  # the number of a block in its level
LAST = 1000  # stands for the resampling behind all blocks of a level


def block_of(target: str) -> tuple[str, str]:
    """The part and the block of a tensor: "unet.encoder.levels.0.res.1.conv_1.bias" -> "unet", "encoder level 0"."""
    _, level, label = _place(target)
    return target.partition(".")[0], label.format(level)


def kind_of(target: str) -> str:
    """The kind of layer that a tensor belongs to, one of KIND_NAMES."""
    return next(kind for pattern, kind in KINDS if re.search(pattern, target))


def network_order(target: str) -> tuple[int, int, int, int]:
    """A key that sorts tensors as the network meets them; those of one block keep their order."""
    rank, level, _ = _place(target)
    within = WITHIN.search(target)
    return PARTS.index(target.partition(".")[0]), rank, level, int(within[1]) if within else LAST


def _place(target: str) -> tuple[int, int, str]:
    for rank, (pattern, label) in enumerate(BLOCKS):
        found = re.match(pattern, target)
        if found:
            return rank, int(found[1]) if found.groups() else 0, label
    raise AssertionError(f"no block for {target}")
