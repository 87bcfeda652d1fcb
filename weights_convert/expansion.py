"""The tables of rules.py, repeated for every block of a config: one rule for every tensor of an original file."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from ldm_us.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from weights_convert.rules import (
    BARE_TENSORS,
    COLUMNS,
    GAINS,
    RES_BLOCK,
    TEXT_BLOCK,
    TIME,
    TRANSFORMER,
    VAE_ATTENTION,
    VAE_RES_BLOCK,
    Layout,
    Row,
    Rule,
)


def inside(paths: Row, table: Iterable[Row]) -> Iterator[Row]:
    """The rows of a block that stands at `paths`."""
    for row in table:
        columns = range(max(len(paths), len(row)))
        yield tuple(f"{_column(paths, i)}.{_column(row, i)}" for i in columns)


def _column(row: Row, i: int) -> str:
    return row[min(i, len(row) - 1)]


def layer_rows(ours: str, compvis: str, diffusers: str, j: int) -> Iterator[Row]:
    """Layer j of a level: a residual block and the transformer behind it."""
    yield from inside((f"{ours}.res.{j}", f"{compvis}.0", f"{diffusers}.resnets.{j}"), RES_BLOCK)
    yield from inside((f"{ours}.transformers.{j}", f"{compvis}.1", f"{diffusers}.attentions.{j}"), TRANSFORMER)


def encoder_rows(config: UNetConfig) -> Iterator[Row]:
    """Time embedding, left half and middle: what UNet and ControlNet share."""
    for ours, *theirs in TIME:
        yield (f"time.{ours}", *theirs)
    yield ("encoder.conv_in", "input_blocks.0.0", "conv_in")
    for i in range(len(config.multipliers)):
        first = 1 + i * (config.res_blocks + 1)  # CompVis counts the convolution and the downsamplings as blocks
        for j in range(config.res_blocks):
            yield from layer_rows(f"encoder.levels.{i}", f"input_blocks.{first + j}", f"down_blocks.{i}", j)
        down = f"input_blocks.{first + config.res_blocks}.0.op"
        yield (f"encoder.downs.{i}.conv", down, f"down_blocks.{i}.downsamplers.0.conv")
    yield from inside(("middle.res_1", "middle_block.0", "mid_block.resnets.0"), RES_BLOCK)
    yield from inside(("middle.transformer", "middle_block.1", "mid_block.attentions.0"), TRANSFORMER)
    yield from inside(("middle.res_2", "middle_block.2", "mid_block.resnets.1"), RES_BLOCK)


def unet_rows(config: UNetConfig) -> Iterator[Row]:
    """The whole UNet; its decoder's levels run from coarse to fine everywhere."""
    yield from encoder_rows(config)
    for i, attention in enumerate(reversed(config.attention)):
        for j in range(config.res_blocks + 1):
            at = f"output_blocks.{i * (config.res_blocks + 1) + j}"
            yield from layer_rows(f"decoder.levels.{i}", at, f"up_blocks.{i}", j)
        up = f"{at}.{2 if attention else 1}.conv"  # CompVis puts it behind the last block of the level
        yield (f"decoder.ups.{i}.conv", up, f"up_blocks.{i}.upsamplers.0.conv")
    yield ("decoder.norm_out", "out.0", "conv_norm_out")
    yield ("decoder.conv_out", "out.2", "conv_out")


def controlnet_rows(config: ModelConfig) -> Iterator[Row]:
    """The copied half, the hint network and the zero convolutions."""
    yield from encoder_rows(config.unet)
    hint, convs = "controlnet_cond_embedding", 2 * len(config.control.hint_channels) - 1
    for i in range(convs):  # CompVis counts the activations between the convolutions
        theirs = "conv_in" if i == 0 else f"blocks.{i - 1}"
        yield (f"hint_network.convs.{i}", f"input_hint_block.{2 * i}", f"{hint}.{theirs}")
    yield ("hint_network.conv_out", f"input_hint_block.{2 * convs}", f"{hint}.conv_out")
    for i in range(len(config.unet.multipliers) * (config.unet.res_blocks + 1)):
        yield (f"zero_convs.{i}", f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}")
    yield ("zero_conv_middle", "middle_block_out.0", "controlnet_mid_block")


def vae_rows(config: VAEConfig) -> Iterator[Row]:
    """Encoder and decoder. CompVis numbers the decoder's levels from fine to coarse, we and diffusers from coarse."""
    last = len(config.multipliers) - 1
    for i in range(last + 1):
        for j in range(config.res_blocks):
            ours, compvis = f"encoder.levels.{i}.{j}", f"encoder.down.{i}.block.{j}"
            yield from inside((ours, compvis, f"encoder.down_blocks.{i}.resnets.{j}"), VAE_RES_BLOCK)
        compvis, diffusers = f"encoder.down.{i}.downsample.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv"
        yield (f"encoder.downs.{i}.conv", compvis, diffusers)
        for j in range(config.res_blocks + 1):
            ours, compvis = f"decoder.levels.{i}.{j}", f"decoder.up.{last - i}.block.{j}"
            yield from inside((ours, compvis, f"decoder.up_blocks.{i}.resnets.{j}"), VAE_RES_BLOCK)
        compvis, diffusers = f"decoder.up.{last - i}.upsample.conv", f"decoder.up_blocks.{i}.upsamplers.0.conv"
        yield (f"decoder.ups.{i}.conv", compvis, diffusers)
    for half in ("encoder", "decoder"):
        middle, mid, block = f"{half}.middle", f"{half}.mid", f"{half}.mid_block"
        yield (f"{half}.conv_in", f"{half}.conv_in")
        yield from inside((f"{middle}.res_1", f"{mid}.block_1", f"{block}.resnets.0"), VAE_RES_BLOCK)
        yield from inside((f"{middle}.attention", f"{mid}.attn_1", f"{block}.attentions.0"), VAE_ATTENTION)
        yield from inside((f"{middle}.res_2", f"{mid}.block_2", f"{block}.resnets.1"), VAE_RES_BLOCK)
        yield (f"{half}.norm_out", f"{half}.norm_out", f"{half}.conv_norm_out")
        yield (f"{half}.conv_out", f"{half}.conv_out")
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))


def text_rows(config: TextConfig) -> Iterator[Row]:
    """The text tower of CLIP; open_clip keeps the projections to q, k and v in one tensor, in this order."""
    yield ("token_embedding", "embeddings.token_embedding", "token_embedding")
    yield ("position_embedding", "embeddings.position_embedding", "positional_embedding")
    for i in range(config.layers):
        yield from inside((f"blocks.{i}", f"encoder.layers.{i}", f"transformer.resblocks.{i}"), TEXT_BLOCK)
    yield ("norm_out", "final_layer_norm", "ln_final")


def rules_for(config: ModelConfig, layout: Layout, targets: Iterable[str]) -> list[Rule]:
    """One rule per tensor of the part in an original file; `targets` are our tensors, of this part and of others."""
    start = f"{layout.part}."
    names = [target.removeprefix(start) for target in targets if target.startswith(start)]
    if layout.naming == "ours":
        return [Rule(f"{layout.prefix}{name}", (start + name,)) for name in names]

    tensors = defaultdict(list)  # module -> "weight", "bias"
    for name in names:
        module, _, tensor = name.rpartition(".")
        tensors[module].append(tensor)
    tensors.pop(GAINS, None)
    targets_of = defaultdict(list)
    for ours, theirs in named_rows(config, layout):
        for tensor in tensors.pop(ours, ()):  # a row without tensors is a block that this config does not have
            targets_of[source_name(theirs, tensor, layout)].append(f"{start}{ours}.{tensor}")
    if tensors:
        raise ValueError(
            f"{config.name}: no other program has a place for {', '.join([*tensors][:3])} of its {layout.part}. Sample "
            "with sample.py."
        )
    return [Rule(source, tuple(parts)) for source, parts in targets_of.items()]


def named_rows(config: ModelConfig, layout: Layout) -> Iterator[tuple[str, str]]:
    """Each module of one part: our name within the part, and that of the layout without its prefix."""
    rows = {
        "vae": vae_rows(config.vae),
        "text": text_rows(config.text),
        "unet": unet_rows(config.unet),
        "controlnet": controlnet_rows(config),
    }
    column = 1 + COLUMNS[layout.part].index(layout.naming)
    return ((row[0], _column(row, column)) for row in rows[layout.part])


def source_name(module: str, tensor: str, layout: Layout) -> str:
    """A tensor's full name in an original file."""
    name = module.format(tensor) if "{}" in module else f"{module}.{tensor}"
    if module in BARE_TENSORS:
        name = module
    return layout.prefix + (name.replace(".", "") if layout.ema else name)
