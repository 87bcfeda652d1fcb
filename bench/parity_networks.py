"""Tokenizer and networks against transformers and diffusers: each gets the same input on both sides, part by part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.parity_table import Row, compare, compare_calls, timed
from ldm_us.data.organ import BREAST
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.clip import tokenize
from ldm_us.networks.unet import Control, encoder_widths

PROMPTS = {
    "nothing": "",
    "a prompt": BREAST.prompt("malignant"),
    "accents": "\u00c9chographie du sein : l\u00e9sion b\u00e9nigne, \u00e0 c\u00f4t\u00e9 na\u00efve",
    "numbers and signs": "BI-RADS 4a; 12.5x7mm @ 10MHz -- it's (not) 'simple' #1 & <50%>!",
    "capitals and spaces": "  UltraSound \t IMAGE\n of   a BREAST ",
    "other scripts": "\u4e73\u817a\u8d85\u58f0 \u0423\u0417\u0418 \U0001f600 5\u00b5m \u00bd",
    "exactly 75 words": "breast " * 75,  # 77 tokens with start and end
    "76 words, one too many": "breast " * 76,
    "a long prompt": ", ".join(f"lesion number {i} is hypoechoic" for i in range(40)),
}
TIMESTEPS = ((0, 1), (37, 961), (500, 999))  # of the two samples of a batch


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    ours: LatentDiffusion
    theirs: Any  # StableDiffusionPipeline: .tokenizer .text_encoder .vae .unet .scheduler
    their_controlnet: Any | None  # ControlNetModel, where the model has a ControlNet

    @property
    def latent_channels(self) -> int:
        """The c of latents (b, c, h, w)."""
        return self.ours.config.vae.latent_channels


def normal(pair: Pair, *shape: int) -> Tensor:
    """Standard normal noise, for every device the same."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(pair.ours.device)


@contextmanager
def recorded(*modules: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every tensor that these modules give is kept, in the order of the computation.

    An encoder gives its last feature map and then all of them, here as in diffusers: those are kept.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        last = output if isinstance(output, Tensor) else output[-1]
        kept.extend([last] if isinstance(last, Tensor) else last)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def compare_inside(
    what: str,
    names: list[str],
    modules: tuple[list[nn.Module], list[nn.Module]],
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
) -> Iterator[Row]:
    """Call both sides; compare what these modules of each gave on the way, then the results.

    A result alone would not do: what is wrong deep inside a UNet hardly shows in its output.
    """
    with recorded(*modules[0]) as inside:
        result, seconds = timed(ours)
    with recorded(*modules[1]) as their_inside:
        their_result, their_seconds = timed(theirs)
    for name, part, their_part in zip(names, inside, their_inside, strict=True):
        yield compare(f"{what}: {name}", part, their_part)
    yield compare(what, result, their_result, (seconds, their_seconds))


def numbered(name: str, count: int) -> list[str]:
    """name 1, name 2, ..."""
    return [f"{name} {i + 1}" for i in range(count)]


def compare_text(pair: Pair) -> Iterator[Row]:
    """Prompts to tokens, then the tokens of all prompts to text states."""
    length = pair.ours.config.text.length
    padded = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    for name, prompt in PROMPTS.items():
        theirs = pair.theirs.tokenizer([prompt], **padded).input_ids
        yield compare(f"tokens: {name}", tokenize(prompt, length), theirs)
    tokens = tokenize(list(PROMPTS.values()), length).to(pair.ours.device)
    yield compare_calls(
        "text states of these prompts",
        lambda: pair.ours.text(tokens),
        lambda: pair.theirs.text_encoder(tokens).last_hidden_state,
    )


def compare_vae(pair: Pair) -> Iterator[Row]:
    """The autoencoder both ways; sides that are odd numbers of latents too."""
    for h, w in ((8, 8), (9, 13)):
        yield from compare_vae_at(pair, h, w)


def compare_vae_at(pair: Pair, h: int, w: int) -> Iterator[Row]:
    """Pixels to moments and to the scaled posterior, latents (1, c, h, w) to pixels."""
    ours, theirs = pair.ours.vae, pair.theirs.vae
    f, scale = pair.ours.config.vae.downsampling, theirs.config.scaling_factor
    x = normal(pair, 1, 3, h * f, w * f).clamp(-1, 1)
    z = normal(pair, 1, pair.latent_channels, h, w)
    levels = len(ours.encoder.downs)
    yield from compare_inside(
        "VAE moments",
        [*numbered("level", levels), "middle"],
        ([*ours.encoder.downs, ours.encoder.middle], [*theirs.encoder.down_blocks[:levels], theirs.encoder.mid_block]),
        lambda: ours.moments(x),
        lambda: theirs.encode(x).latent_dist.parameters,
    )
    posterior, their_posterior = ours.encode(x), theirs.encode(x).latent_dist
    yield compare("VAE posterior, scaled mean", posterior.mean, scale * their_posterior.mean)
    yield compare("VAE posterior, scaled std", posterior.std, scale * their_posterior.std)
    yield from compare_inside(
        "VAE decode",
        ["middle", *numbered("level", levels)],
        ([ours.decoder.middle, *ours.decoder.ups], [theirs.decoder.mid_block, *theirs.decoder.up_blocks[:levels]]),
        lambda: ours.decode(z),
        lambda: theirs.decode(z / scale).sample,
    )


def latent_sizes(pair: Pair) -> tuple[tuple[int, int], ...]:
    """(h, w) of latents: square, and with sides whose coarsest feature maps are 1 and 3, which are odd."""
    unit = pair.ours.config.size_multiple // pair.ours.config.vae.downsampling
    return (2 * unit, 2 * unit), (unit, 3 * unit)


def unet_inputs(pair: Pair, h: int, w: int, t: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """z_t (2, c, h, w), t (2,) and the states of a prompt and of none (2, n, d)."""
    z_t = normal(pair, 2, pair.latent_channels, h, w)
    context = pair.ours.encode_prompts([BREAST.prompt("benign"), ""])
    return z_t, torch.tensor(t, device=z_t.device), context


def compare_unet(pair: Pair) -> Iterator[Row]:
    """What the denoiser predicts without a ControlNet, eps or v."""
    for h, w in latent_sizes(pair):
        for t in TIMESTEPS:
            inputs = unet_inputs(pair, h, w, t)
            yield from compare_unet_at(pair, f"UNet, t = {t[0]} and {t[1]}", *inputs)


def compare_controlnet(pair: Pair) -> Iterator[Row]:
    """Every residual of a ControlNet, where the model has one, and the denoiser that takes them."""
    if pair.ours.controlnet is not None:
        for h, w in latent_sizes(pair):
            yield from compare_controlnet_at(pair, h, w)


def compare_controlnet_at(pair: Pair, h: int, w: int) -> Iterator[Row]:
    """Latents (2, c, h, w) and hints of their size; each denoiser takes the residuals of its own side."""
    t, f = TIMESTEPS[1], pair.ours.config.vae.downsampling
    z_t, t_batch, context = unet_inputs(pair, h, w, t)
    hint = (normal(pair, 2, 3, h * f, w * f) > 0).float()
    control = pair.ours.controlnet(z_t, t_batch, context, hint)
    their_skips, their_middle = pair.their_controlnet(z_t, t_batch, context, hint, return_dict=False)

    residuals, their_residuals = [*control.skips, control.middle], [*their_skips, their_middle]
    counts = (torch.tensor([len(each)]) for each in (residuals, their_residuals))
    yield compare("ControlNet: how many residuals", *counts)
    for i, (residual, their_residual) in enumerate(zip(residuals, their_residuals, strict=False), 1):
        yield compare(f"ControlNet residual {i} of {len(residuals)}", residual, their_residual)
    their_control = {"down_block_additional_residuals": their_skips, "mid_block_additional_residual": their_middle}
    yield from compare_unet_at(pair, "UNet with control", z_t, t_batch, context, control, their_control)


def compare_unet_at(
    pair: Pair,
    what: str,
    z_t: Tensor,
    t: Tensor,
    context: Tensor,
    control: Control | None = None,
    their_control: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """Every feature map of the encoder, the middle, the levels of the decoder, the prediction."""
    ours, theirs = pair.ours.unet, pair.theirs.unet
    levels = len(ours.decoder.ups)
    yield from compare_inside(
        what,
        [*numbered("encoder", len(encoder_widths(ours.config))), "middle", *numbered("decoder", levels)],
        (
            [ours.encoder, ours.middle, *ours.decoder.ups],
            [theirs.conv_in, *theirs.down_blocks, theirs.mid_block, *theirs.up_blocks[:levels]],
        ),
        lambda: ours(z_t, t, context, control),
        lambda: theirs(z_t, t, encoder_hidden_states=context, **(their_control or {})).sample,
    )
