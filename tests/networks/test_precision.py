"""Half precision: weights cast once give autocast's bits, the autoencoder stays out of float16, TF32 where asked."""

import copy

import pytest
import torch
from torch import nn

from ldm_us.config import TINY
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.precision import HALF, cast_weights, computing_in

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = LatentDiffusion(TINY)
    for conv in model.add_controlnet().zero_convs:
        nn.init.normal_(conv.weight, std=0.1)
    return model.eval().requires_grad_(False)


def outputs(model):
    """What every network makes of the same inputs."""
    generator = torch.Generator().manual_seed(1)
    z, hint, x = (torch.randn(2, c, s, s, generator=generator) for c, s in ((4, 8), (3, 64), (3, 64)))
    t, tokens = torch.tensor([3, 900]), torch.arange(2 * 77).view(2, 77)
    context = model.text(tokens)
    control = model.controlnet(z, t, context, hint)
    return [context, *control.skips, model.unet(z, t, context, control), model.vae.decode(z), model.vae.moments(x)]


@pytest.mark.parametrize("precision", HALF)
def test_weights_cast_once_give_the_very_bits_of_autocast_over_float32_weights(model, precision):
    cast = copy.deepcopy(model)
    for network in (cast.text, cast.unet, cast.controlnet, *([cast.vae] if precision == "bf16" else [])):
        cast_weights(network, precision)
    assert cast.unet.decoder.conv_out.weight.dtype == HALF[precision]
    with torch.no_grad(), computing_in(precision, CPU):
        expected, found = outputs(model), outputs(cast)
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True))
    with torch.no_grad():
        assert not any(a.equal(b) for a, b in zip(expected[:-2], outputs(model), strict=False)), "it does round"


def test_norms_embeddings_what_trains_and_what_is_not_chosen_stay_in_float32(model):
    cast = copy.deepcopy(model)
    cast.unet.decoder.requires_grad_(True)
    cast_weights(cast, "bf16", {name for name, _ in cast.named_parameters() if not name.startswith("vae.")})
    for name, parameter in cast.named_parameters():
        owner = cast.get_submodule(name.rpartition(".")[0])
        casts = isinstance(owner, nn.Linear | nn.Conv2d) and not name.startswith(("vae.", "unet.decoder."))
        assert parameter.dtype == (torch.bfloat16 if casts else torch.float32), name
        assert parameter.float().equal(model.get_parameter(name).to(parameter.dtype).float())


def test_the_autoencoder_computes_in_float32_where_the_rest_is_float16(model):
    """A latent that decodes to activations beyond 65504 gives a picture, and the bits of float32."""
    vae = copy.deepcopy(model.vae)
    vae.decoder.conv_in.weight.mul_(1e6)
    z, x = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 64, 64)
    expected = vae.decode(z), vae.moments(x)
    with torch.autocast("cpu", torch.float16):
        assert all(a.equal(b) for a, b in zip(expected, (vae.decode(z), vae.moments(x)), strict=True))
        assert not vae.decoder(vae.post_quant_conv(z / vae.scale)).isfinite().all(), "what would be without"
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(z).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_tf32_is_used_inside_where_it_is_asked_for_and_settings_are_as_before_after(precision):
    def settings():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = settings()
    with computing_in("tf32", CPU):
        assert settings() == (True, True)
        with computing_in(precision, CPU):
            assert settings() == (precision == "tf32",) * 2
        assert settings() == (True, True)
    assert settings() == before
