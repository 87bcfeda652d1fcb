"""The golden numbers can fail: each of these mistakes, alone, moves a result of the tiny model past the bar."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm_us.config import TINY
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks import transformer
from ldm_us.networks import unet as unet_module
from ldm_us.networks import vae as vae_module
from ldm_us.networks.clip import END_OF_TEXT
from ldm_us.networks.layers import Attention, GroupNorm, Upsample
from tests.golden.compare import BAR, GOLDEN, difference, hint, named, unet_inputs, vae_inputs
from tests.golden.converted import convert_state_dict
from tests.golden.original import tiny_compvis


@pytest.fixture(scope="module")
def right():
    """The tiny model with nothing wrong, to be read only."""
    with torch.device("meta"):
        model = LatentDiffusion(TINY)
        model.add_controlnet()
    model.load_state_dict(convert_state_dict(tiny_compvis(), TINY), assign=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def distance(right):
    """A function: how far the right model's result of this name is from the golden numbers, computed once."""

    @cache
    def measure(name):
        return difference(result(right, name), "tiny", name)

    return measure


@pytest.fixture
def model(right):
    """Its copy, to be spoiled."""
    return copy.deepcopy(right)


def modules(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def set_eps(network, eps, kind, below=nn.Module):
    for parent in modules(network, below):
        for module in parent.children():
            if isinstance(module, kind):
                module.eps = eps


def swap_halves(layer):
    """Exchange the two halves of a layer's output."""
    for value in layer.parameters():
        value.copy_(torch.cat(value.chunk(2)[::-1]))


def set_heads(network, heads):
    for module in modules(network, Attention):
        module.heads = heads


def pad_two_sides(network):
    """Downsample the UNet as the VAE does."""
    for module in modules(network, unet_module.Downsample):
        module.conv.padding = (0, 0)
        module.conv = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), module.conv)


def embed(patch, order, one_less):
    def timestep_embedding(t, width):
        half = width // 2
        exponents = torch.arange(half) / (half - one_less)
        angles = t.float()[:, None] * torch.exp(-np.log(10000.0) * exponents)[None]
        return torch.cat([getattr(angles, function)() for function in order], dim=-1)

    patch.setattr(unet_module, "timestep_embedding", timestep_embedding)


def attend(patch, **changes):
    original = F.scaled_dot_product_attention
    patch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, is_causal: original(q, k, v, **changes))


def hint_one_block_later(model):
    network, features = model.controlnet.hint_network, []
    network.register_forward_hook(lambda module, args, output: features.append(output) or torch.zeros_like(output))
    block = model.controlnet.encoder.levels[0].transformers[0]
    block.register_forward_hook(lambda module, args, output: output + features[-1])


def smooth_upsampling(network):
    for module in modules(network, Upsample):
        up = nn.Upsample(scale_factor=2, mode="bilinear")
        module.forward = lambda features, conv=module.conv, up=up: conv(up(features))


MISTAKES = {
    "transformer eps 1e-5": (
        "unet.eps",
        lambda m, p: set_eps(m.unet, 1e-5, GroupNorm, transformer.SpatialTransformer),
    ),
    "ResBlock eps 1e-6": ("unet.eps", lambda m, p: set_eps(m.unet, 1e-6, GroupNorm, unet_module.ResBlock)),
    "last UNet eps 1e-6": ("unet.eps", lambda m, p: set_eps(m.unet, 1e-6, GroupNorm, unet_module.Decoder)),
    "UNet LayerNorm eps 1e-6": ("unet.eps", lambda m, p: set_eps(m.unet, 1e-6, nn.LayerNorm)),
    "UNet pads as the VAE": ("unet.eps", lambda m, p: pad_two_sides(m.unet)),
    "gate before value": (
        "unet.eps",
        lambda m, p: [swap_halves(f.proj_in) for f in modules(m, transformer.FeedForward)],
    ),
    "tanh GELU": ("unet.eps", lambda m, p: p.setattr(F, "gelu", lambda x, f=F.gelu: f(x, approximate="tanh"))),
    "8 heads": ("unet.eps", lambda m, p: set_heads(m.unet, 8)),
    "sine before cosine": ("unet.eps", lambda m, p: embed(p, ("sin", "cos"), one_less=0)),
    "exponent over half - 1": ("unet.eps", lambda m, p: embed(p, ("cos", "sin"), one_less=1)),
    "smooth upsampling": ("unet.eps", lambda m, p: smooth_upsampling(m.unet)),
    "attention unscaled": ("unet.eps", lambda m, p: attend(p, scale=1.0)),
    "control eps 1e-5": (
        "controlnet.residual_12",
        lambda m, p: set_eps(m.controlnet, 1e-5, GroupNorm, transformer.SpatialTransformer),
    ),
    "hint after the second block": ("controlnet.residual_00", lambda m, p: hint_one_block_later(m)),
    "hint after the second block, at the end": ("controlnet.residual_12", lambda m, p: hint_one_block_later(m)),
    "ReLU in the hint network": ("controlnet.residual_00", lambda m, p: p.setattr(F, "silu", F.relu)),
    "first skip uncontrolled": ("controlnet.eps", lambda m, p: m.controlnet.zero_convs[0].weight.zero_()),
    "VAE encoder eps 1e-5": ("vae.moments", lambda m, p: set_eps(m.vae, 1e-5, GroupNorm)),
    "VAE decoder eps 1e-5": ("vae.decoded", lambda m, p: set_eps(m.vae, 1e-5, GroupNorm)),
    "VAE pads left and top": ("vae.moments", lambda m, p: p.setattr(vae_module.Downsample, "padding", (1, 0, 1, 0))),
    "log variance before mean": ("vae.moments", lambda m, p: swap_halves(m.vae.quant_conv)),
    "quant_conv left out": ("vae.moments", lambda m, p: setattr(m.vae, "quant_conv", nn.Identity())),
    "post_quant_conv left out": ("vae.decoded", lambda m, p: setattr(m.vae, "post_quant_conv", nn.Identity())),
    "VAE attention with 4 heads": ("vae.decoded", lambda m, p: set_heads(m.vae, 4)),
    "exact GELU in CLIP": (
        "clip.last_hidden_state",
        lambda m, p: [setattr(block, "activation", nn.GELU()) for block in m.text.blocks],
    ),
    "no causal mask": ("clip.last_hidden_state", lambda m, p: attend(p)),
    "no final norm": ("clip.last_hidden_state", lambda m, p: setattr(m.text, "norm_out", nn.Identity())),
    "CLIP with 8 heads": ("clip.last_hidden_state", lambda m, p: set_heads(m.text, 8)),
    "padding with 0": ("clip.last_hidden_state", lambda m, p: p.setitem(GOLDEN["tiny"], "clip.tokens", pad_with_0())),
}


def pad_with_0():
    tokens = GOLDEN["tiny"]["clip.tokens"]
    ended = np.cumsum(tokens == END_OF_TEXT, axis=1)
    return np.where(ended > 1, 0, tokens)


def result(model, name):
    """The one result of the tiny model."""
    inputs, (image, latents) = unet_inputs(TINY), vae_inputs()
    if name == "unet.eps":
        return model.unet(*inputs)
    if name == "vae.moments":
        return model.vae.moments(image)
    if name == "vae.decoded":
        return model.vae.decode_unscaled(latents)
    if name == "clip.last_hidden_state":
        return model.text(torch.from_numpy(GOLDEN["tiny"]["clip.tokens"]))
    control = model.controlnet(*inputs, hint())
    return model.unet(*inputs, control) if name == "controlnet.eps" else named(control)[name]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_golden_numbers_notice(mistake, distance, model, monkeypatch):
    name, make = MISTAKES[mistake]
    with torch.no_grad():
        before = distance(name)  # before the mistake is made: a patch reaches every model
        make(model, monkeypatch)
        after = difference(result(model, name), "tiny", name)
    assert before < BAR < after


def test_every_residual_of_the_controlnet_notices(model, monkeypatch):
    inputs = (*unet_inputs(TINY), hint())
    with torch.no_grad():
        right = named(model.controlnet(*inputs))
        monkeypatch.setattr(F, "silu", F.relu)
        wrong = named(model.controlnet(*inputs))
    assert len(right) == 13
    for name in right:
        assert difference(right[name], "tiny", name) < BAR < difference(wrong[name], "tiny", name)
