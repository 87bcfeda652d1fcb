"""Where a tensor of ours stands: its block, in the order in which the network runs, and its kind of layer."""

import re

from ldm_us.files.checkpoint import PARTS

HALF = (  # what UNet and ControlNet share
    (r"time\.", "time embedding"),
    (r"encoder\.conv_in", "encoder in"),
    (r"hint_network\.", "hint network"),
    (r"encoder\.(?:levels|downs)\.(\d+)", "encoder level {}"),
    (r"middle\.", "middle"),
)

# What a name starts with behind its part -> the block, in the order of the forward pass.
BLOCKS = {
    "vae": (
        (r"encoder\.conv_in", "encoder in"),
        (r"encoder\.(?:levels|downs)\.(\d+)", "encoder level {}"),
        (r"encoder\.middle", "encoder middle"),
        (r"encoder\.(?:norm|conv)_out|quant_conv", "encoder out"),
        (r"post_quant_conv|decoder\.conv_in", "decoder in"),
        (r"decoder\.middle", "decoder middle"),
        (r"decoder\.(?:levels|ups)\.(\d+)", "decoder level {}"),
        (r"decoder\.(?:norm|conv)_out", "decoder out"),
    ),
    "text": (
        (r"(?:token|position)_embedding|prompt", "embeddings"),
        (r"blocks\.(\d+)", "block {}"),
        (r"norm_out", "out"),
    ),
    "unet": (
        *HALF,
        (r"decoder\.(?:levels|ups)\.(\d+)", "decoder level {}"),
        (r"decoder\.(?:norm|conv)_out", "out"),
    ),
    "controlnet": (*HALF, (r"zero_conv", "zero convolutions")),
}

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
    part = target.partition(".")[0]
    _, _, label = _place(target)
    return part, label


def kind_of(target: str) -> str:
    """The kind of layer that a tensor belongs to, one of KIND_NAMES."""
    return next(kind for pattern, kind in KINDS if re.search(pattern, target))


def network_order(target: str) -> tuple[int, int, int, int]:
    """A key that sorts tensors as the network meets them; those of one block keep their order."""
    part = PARTS.index(target.partition(".")[0])
    rank, level, _ = _place(target)
    within = WITHIN.search(target)
    return part, rank, level, int(within[1]) if within else LAST


def _place(target: str) -> tuple[int, int, str]:
    part, _, name = target.partition(".")
    for rank, (pattern, label) in enumerate(BLOCKS[part]):
        found = re.match(pattern, name)
        if found:
            level = int(found[1]) if found.groups() else 0
            return rank, level, label.format(level)
    raise AssertionError(f"no block for {target}")
