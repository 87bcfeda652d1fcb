"""The UNet: sizes, shapes, and what its output depends on."""

import math

import pytest
import torch
import torch.nn.functional as F

from ldm_us.config import SD15, TINY, US128
from ldm_us.networks.transformer import FeedForward
from ldm_us.networks.unet import Control, Downsample, UNet, encoder_widths, timestep_embedding


def make(config):
    torch.manual_seed(0)
    return UNet(config.unet).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    return make(TINY)


def inputs(batch=2, h=8, w=8, width=32):
    generator = torch.Generator().manual_seed(1)
    z_t, context = torch.randn(batch, 4, h, w, generator=generator), torch.randn(batch, 77, width, generator=generator)
    return z_t, torch.tensor([37, 961])[:batch], context


def test_sd15_has_as_many_parameters_and_tensors_as_the_original():
    with torch.device("meta"):
        unet = UNet(SD15.unet)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert len(unet.state_dict()) == 686
    assert encoder_widths(SD15.unet) == [320] * 4 + [640] * 3 + [1280] * 5


@pytest.mark.parametrize(("config", "h", "w"), [(TINY, 8, 16), (US128, 12, 8)])
def test_eps_hat_has_the_shape_of_z_t(config, h, w):
    z_t, t, context = inputs(h=h, w=w)
    assert make(config)(z_t, t, context).shape == z_t.shape


def test_the_skips_have_the_widths_and_sizes_that_the_decoder_expects(tiny):
    z_t, t, context = inputs(h=16, w=8)
    features, skips = tiny.encoder(z_t, tiny.time(t), context)
    assert [skip.shape[1] for skip in skips] == encoder_widths(TINY.unet)
    assert [skip.shape[2] for skip in skips] == [16] * 3 + [8] * 3 + [4] * 3 + [2] * 3
    assert [skip.shape[3] for skip in skips] == [8] * 3 + [4] * 3 + [2] * 3 + [1] * 3
    assert torch.equal(features, skips[-1])


def test_no_control_equals_zero_control(tiny):
    """ControlNet Eq. 2 with every residual at zero."""
    z_t, t, context = inputs()
    _, skips = tiny.encoder(z_t, tiny.time(t), context)
    zero = Control([torch.zeros_like(skip) for skip in skips], torch.zeros_like(skips[-1]))
    assert torch.equal(tiny(z_t, t, context, zero), tiny(z_t, t, context))


def test_every_residual_of_a_control_changes_the_output(tiny):
    """ControlNet Eq. 2: one residual per skip, one for the middle."""
    z_t, t, context = inputs(batch=1)
    _, skips = tiny.encoder(z_t, tiny.time(t), context)
    plain = tiny(z_t, t, context)
    for changed in range(13):
        residuals = [torch.full_like(f, float(i == changed)) for i, f in enumerate([*skips, skips[-1]])]
        assert not torch.equal(tiny(z_t, t, context, Control(residuals[:-1], residuals[-1])), plain)


def test_a_control_with_too_few_residuals_is_refused(tiny):
    z_t, t, context = inputs(batch=1)
    with pytest.raises(ValueError, match="shorter"):
        tiny(z_t, t, context, Control([torch.zeros(1, 32, 8, 8)], torch.zeros(1, 128, 1, 1)))


def test_eps_hat_depends_on_the_latents_the_timestep_and_the_text(tiny):
    """LDM Eq. 3: eps_theta(z_t, t, tau_theta(y))."""
    z_t, t, context = inputs()
    eps_hat = tiny(z_t, t, context)
    for changed in (tiny(z_t.flip(0), t, context), tiny(z_t, t.flip(0), context), tiny(z_t, t, context.flip(0))):
        assert float((changed - eps_hat).abs().max()) > 1e-4


def test_a_sample_does_not_depend_on_the_rest_of_its_batch(tiny):
    z_t, t, context = inputs()
    alone = torch.cat([tiny(z_t[i, None], t[i, None], context[i, None]) for i in range(2)])
    torch.testing.assert_close(tiny(z_t, t, context), alone, rtol=1e-4, atol=1e-5)


def test_groupnorm_eps_is_1e_5_but_in_the_transformers_1e_6(tiny):
    eps = {name: module.eps for name, module in tiny.named_modules() if type(module).__name__ == "GroupNorm"}
    transformers = {name for name in eps if "transformer" in name}
    assert {eps[name] for name in transformers} == {1e-6}
    assert {eps[name] for name in eps.keys() - transformers} == {1e-5}


def test_geglu_is_value_times_the_exact_gelu_of_the_gate():
    layer, tokens = FeedForward(4).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    value, gate = layer.proj_in(tokens)[..., :16], layer.proj_in(tokens)[..., 16:]
    gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    torch.testing.assert_close(layer(tokens), layer.proj_out(value * gelu))


def test_downsampling_pads_on_all_four_sides():
    layer, features = Downsample(2), torch.randn(1, 2, 6, 6)
    expected = F.conv2d(F.pad(features, (1, 1, 1, 1)), layer.conv.weight, layer.conv.bias, stride=2)
    torch.testing.assert_close(layer(features), expected)


def test_the_timestep_embedding_is_cosines_then_sines_with_exponents_over_half():
    """DDPM appendix B (Attention section 3.5), in the order and with the exponents of Stable Diffusion."""
    t = [0, 1, 37, 500, 999]
    for width in (8, 320):
        embedding = timestep_embedding(torch.tensor(t), width)
        assert embedding.shape == (5, width)
        assert embedding.dtype == torch.float32
        for row, step in zip(embedding.tolist(), t, strict=True):
            angles = [step * 10000 ** (-i / (width // 2)) for i in range(width // 2)]
            expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
            assert row == pytest.approx(expected, abs=2e-4)
    assert timestep_embedding(torch.tensor([0]), 6).tolist() == [[1, 1, 1, 0, 0, 0]]
