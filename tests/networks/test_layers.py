"""The layers that several networks use, each against plain loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from ldm_us.networks.layers import Attention, GroupNorm, Upsample


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_by_loops(layer, tokens, context, causal):
    """Softmax(Q K^T / sqrt(d)) V, one query of one head at a time."""
    q, k, v = layer.to_q(tokens), layer.to_k(context), layer.to_v(context)
    d = q.shape[-1] // layer.heads
    attended = torch.zeros_like(q)
    for b in range(len(q)):
        for head in range(layer.heads):
            part = slice(head * d, (head + 1) * d)
            for i in range(q.shape[1]):
                visible = range(i + 1 if causal else k.shape[1])
                scores = [math.exp(float(q[b, i, part] @ k[b, j, part]) / math.sqrt(d)) for j in visible]
                weighted = [score * v[b, j, part] for score, j in zip(scores, visible, strict=True)]
                attended[b, i, part] = sum(weighted) / sum(scores)
    return layer.to_out(attended)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_self_attention_is_the_softmax_of_scaled_products(causal, qkv_bias):
    """Attention Eq. 1."""
    layer, tokens = Attention(12, heads=3, qkv_bias=qkv_bias).double(), draw(2, 5, 12)
    expected = attention_by_loops(layer, tokens, tokens, causal)
    torch.testing.assert_close(layer(tokens, causal=causal), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_cross_attention_takes_keys_and_values_from_the_context():
    """Attention Eq. 1 as LDM Eq. 3 uses it: queries from the image, keys and values from the text."""
    layer, tokens, context = Attention(12, heads=2, context_width=7).double(), draw(2, 5, 12), draw(2, 9, 7, seed=1)
    expected = attention_by_loops(layer, tokens, context, causal=False)
    assert layer(tokens, context).shape == tokens.shape
    torch.testing.assert_close(layer(tokens, context), expected, rtol=1e-10, atol=1e-12)


def test_only_the_output_has_a_bias_unless_asked():
    assert [name for name, _ in Attention(8, heads=2).named_parameters() if "bias" in name] == ["to_out.bias"]
    assert len([name for name, _ in Attention(8, heads=2, qkv_bias=True).named_parameters() if "bias" in name]) == 4


def group_norm_by_loops(features, groups, eps):
    normed = torch.zeros_like(features)
    size = features.shape[1] // groups
    for b in range(len(features)):
        for g in range(groups):
            part = features[b, g * size : (g + 1) * size]
            mean, variance = part.mean(), part.var(unbiased=False)
            normed[b, g * size : (g + 1) * size] = (part - mean) / (variance + eps).sqrt()
    return normed


@torch.no_grad()
def test_group_norm_of_bfloat16_takes_its_statistics_in_float32():
    features = (draw(2, 8, 16, 16) + 20).to(torch.bfloat16)
    expected = group_norm_by_loops(features.double(), groups=4, eps=1e-6)
    normed = GroupNorm(4, 8, eps=1e-6).to(torch.bfloat16)(features)
    error = float((normed.double() - expected).abs().max())
    assert normed.dtype == torch.bfloat16
    assert error < 2**-7, "rounding of the result, whose size is below 4"

    in_bfloat16 = group_norm_by_loops(features, groups=4, eps=1e-6)
    assert float((in_bfloat16.double() - expected).abs().max()) > 4 * error


@torch.no_grad()
def test_group_norm_leaves_no_choice_of_precision_to_the_device(monkeypatch):
    seen = []
    monkeypatch.setattr(F, "group_norm", lambda *a, real=F.group_norm: (seen.extend(a), real(*a))[1])
    GroupNorm(4, 8, eps=1e-6).to(torch.bfloat16)(torch.ones(1, 8, 2, 2, dtype=torch.bfloat16))
    assert {values.dtype for values in seen if isinstance(values, torch.Tensor)} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_group_norm_adds_its_own_eps_to_the_variance(eps):
    features = 1e-3 * draw(1, 8, 4, 4)
    normed = GroupNorm(2, 8, eps=eps)(features.float())
    torch.testing.assert_close(normed.double(), group_norm_by_loops(features, 2, eps), rtol=1e-4, atol=1e-5)
    other = group_norm_by_loops(features, 2, 1e-5 + 1e-6 - eps)
    assert float((normed - other).abs().max()) > 0.1


def test_upsampling_repeats_each_pixel_and_then_convolves():
    layer, features = Upsample(2).double(), draw(1, 2, 3, 4)
    repeated = torch.zeros(1, 2, 6, 8, dtype=torch.float64)
    for i in range(6):
        for j in range(8):
            repeated[..., i, j] = features[..., i // 2, j // 2]
    expected = F.conv2d(repeated, layer.conv.weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(features), expected)
