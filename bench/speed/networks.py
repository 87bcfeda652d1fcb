"""Networks alone: both sides in one process, on the same weights and inputs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bench.parity import open_pair
from bench.parity_networks import Pair, normal
from bench.parity_table import compare
from bench.speed.measuring import Call, Rates, alternate, bytes_of, flops_of, measured_rates
from bench.speed.settings import Settings
from bench.speed.table import Row
from ldm_us.networks.clip import tokenize

GUIDED = 2  # a guided step calls the networks with two of each sample


def opened(settings: Settings) -> tuple[Pair, Rates]:
    """Both sides, and what the machine does at best while they are measured."""
    pair = open_pair(settings.weights, settings.folder, settings.device, settings.torch_dtype)
    if settings.compiled:
        parts = [pair.ours.unet, pair.ours.controlnet, pair.theirs.unet, pair.their_controlnet]
        for part in (part for part in parts if part is not None):
            part.compile()
    return pair, measured_rates(settings)


def versus(what: str, settings: Settings, rates: Rates, weights: int, ours: Call, theirs: Call) -> Row:
    """Call both sides once to warm up, compare what they give, and time them. `weights`: bytes that a call reads."""
    result, flops = (ours(), 0) if settings.compiled else flops_of(ours)  # counting would undo the compiling
    difference = compare(what, result, theirs()).relative
    seconds = alternate(ours, theirs, settings.rounds, settings.clock)
    floor = rates.floor(flops, weights) if flops else None
    return Row(what, settings.dtype, *seconds, floor=floor, difference=difference, compiled=settings.compiled)


def normals(pair: Pair, settings: Settings, *shape: int) -> Tensor:
    """Normal noise in the dtype of the weights."""
    return normal(pair, *shape).to(settings.torch_dtype)


def unet_inputs(pair: Pair, settings: Settings, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text states."""
    config = pair.ours.config
    side = settings.size // config.vae.downsampling
    z_t = normals(pair, settings, batch, pair.latent_channels, side, side)
    context = normals(pair, settings, batch, config.text.length, config.unet.context_width)
    return z_t, torch.full((batch,), 500, device=z_t.device), context


@torch.no_grad()
def network_rows(settings: Settings) -> Iterator[Row]:
    """UNet, ControlNet and UNet, autoencoder, text encoder."""
    pair, rates = opened(settings)
    for batch in settings.batches:
        yield unet_row(pair, settings, rates, batch)
    if pair.ours.controlnet is not None:
        yield control_row(pair, settings, rates)
    if not settings.compiled:
        yield from vae_rows(pair, settings, rates)
        yield text_row(pair, settings, rates)


def unet_row(pair: Pair, settings: Settings, rates: Rates, batch: int) -> Row:
    """One call of the UNet."""
    ours, theirs = pair.ours.unet, pair.theirs.unet
    z_t, t, context = unet_inputs(pair, settings, batch)
    return versus(
        f"UNet, batch {batch}",
        settings,
        rates,
        bytes_of([ours]),
        lambda: ours(z_t, t, context),
        lambda: theirs(z_t, t, encoder_hidden_states=context, return_dict=False)[0],
    )


def control_row(pair: Pair, settings: Settings, rates: Rates) -> Row:
    """ControlNet and UNet of a guided step; of the mask ours takes the features, computed once per sample."""
    ours, our_control, theirs, their_control = (
        pair.ours.unet,
        pair.ours.controlnet,
        pair.theirs.unet,
        pair.their_controlnet,
    )
    assert our_control is not None
    z_t, t, context = unet_inputs(pair, settings, GUIDED)
    hint = (normals(pair, settings, GUIDED, 3, settings.size, settings.size) > 0).to(z_t.dtype)
    features = our_control.hint_network(hint)

    def call_theirs() -> Any:
        skips, middle = their_control(z_t, t, context, hint, return_dict=False)
        control = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        return theirs(z_t, t, encoder_hidden_states=context, **control, return_dict=False)[0]

    return versus(
        f"ControlNet and UNet, batch {GUIDED}",
        settings,
        rates,
        bytes_of([ours, our_control]),
        lambda: ours(z_t, t, context, our_control(z_t, t, context, hint_features=features)),
        call_theirs,
    )


def vae_rows(pair: Pair, settings: Settings, rates: Rates) -> Iterator[Row]:
    """Pixels to moments, latents to pixels."""
    ours, theirs = pair.ours.vae, pair.theirs.vae
    side = settings.size // pair.ours.config.vae.downsampling
    x = normals(pair, settings, 1, 3, settings.size, settings.size).clamp(-1, 1)
    z = normals(pair, settings, 1, pair.latent_channels, side, side)
    encoder, decoder = bytes_of([ours.encoder]), bytes_of([ours.decoder])
    moments: Call = lambda: ours.moments(x)  # noqa: E731
    their_moments: Call = lambda: theirs.encode(x).latent_dist.parameters  # noqa: E731
    yield versus("VAE encode, batch 1", settings, rates, encoder, moments, their_moments)
    pixels: Call = lambda: ours.decode_unscaled(z)  # noqa: E731
    yield versus(
        "VAE decode, batch 1", settings, rates, decoder, pixels, lambda: theirs.decode(z, return_dict=False)[0]
    )


def text_row(pair: Pair, settings: Settings, rates: Rates) -> Row:
    """Tokens of a prompt, and of none, to text states."""
    tokens = tokenize(["an ultrasound image of a breast", ""], pair.ours.config.text.length).to(pair.ours.device)
    ours, theirs = pair.ours.text, pair.theirs.text_encoder
    weights = bytes_of([ours])
    return versus(
        "text, 2 prompts", settings, rates, weights, lambda: ours(tokens), lambda: theirs(tokens).last_hidden_state
    )


def as_values(rows: Iterator[Row]) -> list[dict[str, Any]]:
    """Rows for JSON."""
    return [asdict(row) for row in rows]
