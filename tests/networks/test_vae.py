"""The autoencoder: sizes, shapes, its scale, and the Gaussian between its halves."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from ldm_us.config import SD15, TINY, US128
from ldm_us.networks.vae import (
    DECODER_PARTS,
    VAE,
    DiagonalGaussian,
    Downsample,
    kl_to_standard_normal,
    posterior_from_moments,
)


def make(config):
    torch.manual_seed(0)
    return VAE(config.vae).eval().requires_grad_(False)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def us128():
    return make(US128)


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 3, 32, 16, generator=generator()) * 2 - 1


def test_whitened_latents_have_mean_0_and_std_1_in_every_channel_and_the_images_stay(x):
    """Whitening Eq. 1: (E(x) - mean) / std, folded into the 1x1 convolutions around the latents."""
    plain = make(US128)
    mean, std = torch.tensor([0.5, -2.0, 3.0, 0.0]), torch.tensor([0.1, 2.0, 1.0, 5.0])
    white = copy.deepcopy(plain)
    white.whiten(mean, std)
    before, after = (posterior_from_moments(vae.moments(x), scale=1.0) for vae in (plain, white))
    m, s = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    torch.testing.assert_close(after.mean, (before.mean - m) / s, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.std, before.std / s, rtol=1e-4, atol=1e-5)
    images = (vae.decode_unscaled(each.mean) for vae, each in ((plain, before), (white, after)))
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)


def test_sd15_has_as_many_parameters_and_tensors_as_the_original():
    with torch.device("meta"):
        vae = VAE(SD15.vae)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert len(vae.state_dict()) == 248
    assert vae.scale == 0.18215


@pytest.mark.parametrize("config", [TINY, US128])
def test_latents_are_smaller_by_the_downsampling_and_decode_to_the_image_size(config, x):
    vae, f = make(config), config.vae.downsampling
    assert vae.moments(x).shape == (2, 8, 32 // f, 16 // f)
    posterior = vae.encode(x)
    for latents in (posterior.mean, posterior.std, posterior.sample(generator())):
        assert latents.shape == (2, 4, 32 // f, 16 // f)
    assert vae.decode(posterior.mean).shape == x.shape
    assert vae.decode_unscaled(posterior.mean).shape == x.shape


def test_samples_have_the_mean_and_standard_deviation_of_each_element():
    """VAE section 2.4: z = mean + std * eps."""
    mean, std = torch.tensor([-3.0, 0.0, 2.0]), torch.tensor([0.1, 1.0, 4.0])
    n = 200_000
    posterior = DiagonalGaussian(*(values.view(1, 3, 1, 1).expand(n, -1, -1, -1) for values in (mean, std)))
    z = posterior.sample(generator()).view(n, 3)
    assert ((z.mean(dim=0) - mean) / std).abs().max() < 5 / n**0.5
    assert (z.std(dim=0) / std - 1).abs().max() < 5 / (2 * n) ** 0.5


def test_a_sample_is_fixed_by_its_generator_and_is_the_mean_where_std_is_0():
    mean = torch.randn(1, 4, 2, 2, generator=generator(7))
    posterior = DiagonalGaussian(mean, torch.ones_like(mean))
    assert torch.equal(posterior.sample(generator(3)), posterior.sample(generator(3)))
    assert not torch.equal(posterior.sample(generator(3)), posterior.sample(generator(4)))
    assert torch.equal(DiagonalGaussian(mean, torch.zeros_like(mean)).sample(generator()), mean)


def test_encode_scales_the_mean_and_the_standard_deviation_of_the_moments(us128, x):
    mean, logvar = us128.moments(x)[:, :4], us128.moments(x)[:, 4:]
    posterior = us128.encode(x)
    torch.testing.assert_close(posterior.mean, 0.18215 * mean)
    torch.testing.assert_close(posterior.std, 0.18215 * logvar.exp().sqrt())


def test_the_scale_cancels_between_encode_and_decode(us128, x):
    other = copy.deepcopy(us128)
    other.scale = 3.7
    torch.testing.assert_close(other.encode(x).mean / 3.7, us128.encode(x).mean / 0.18215)
    reconstructed = us128.decode(us128.encode(x).mean)
    torch.testing.assert_close(other.decode(other.encode(x).mean), reconstructed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(us128.decode_unscaled(us128.moments(x)[:, :4]), reconstructed, rtol=1e-4, atol=1e-5)


def test_the_log_variance_is_clamped_to_minus_30_and_20():
    logvar = torch.tensor([-1000.0, -30.0, 20.0, 1000.0]).view(1, 4, 1, 1)
    moments = torch.cat([torch.zeros_like(logvar), logvar], dim=1)
    expected = torch.exp(torch.tensor([-15.0, -15.0, 10.0, 10.0]))
    torch.testing.assert_close(posterior_from_moments(moments, scale=1.0).std.flatten(), expected)
    assert bool(kl_to_standard_normal(moments).isfinite())


def test_the_kl_of_each_image_is_that_of_torch_distributions():
    """VAE Eq. 10, its first term, with the sign of a loss."""
    moments = torch.randn(3, 8, 4, 4, generator=generator(), dtype=torch.float64)
    posterior = Normal(moments[:, :4], moments[:, 4:].exp().sqrt())
    expected = kl_divergence(posterior, Normal(torch.zeros(()).double(), torch.ones(()).double())).sum(dim=(1, 2, 3))
    torch.testing.assert_close(kl_to_standard_normal(moments), expected)
    assert kl_to_standard_normal(torch.zeros(1, 8, 4, 4)).tolist() == [0.0]


def test_downsampling_pads_on_the_right_and_at_the_bottom_only():
    layer, features = Downsample(2), torch.randn(1, 2, 6, 6)
    padded = torch.zeros(1, 2, 7, 7)
    padded[..., :6, :6] = features
    expected = F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2)
    torch.testing.assert_close(layer(features), expected)


def test_every_groupnorm_has_an_eps_of_1e_6(us128):
    assert {module.eps for module in us128.modules() if isinstance(module, torch.nn.GroupNorm)} == {1e-6}


def test_the_latents_depend_on_no_weight_of_the_decoder_parts_and_the_pixels_on_every_one(us128, x):
    changed = copy.deepcopy(us128)
    latents = us128.moments(x)[:, :4].clone()
    for part in DECODER_PARTS:
        changed.get_submodule(part).requires_grad_(True)
    trained = [p for p in changed.parameters() if p.requires_grad]
    changed.decode_unscaled(latents).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained)
    with torch.no_grad():
        for p in trained:
            p.add_(0.1)
    assert torch.equal(changed.moments(x), us128.moments(x))


def test_every_weight_is_either_of_the_decoder_parts_or_behind_the_latents(us128, x):
    other = copy.deepcopy(us128).requires_grad_(True)
    other.moments(x).square().mean().backward()
    encoding = {name for name, p in other.named_parameters() if p.grad is not None}
    decoding = {name for name, _ in other.named_parameters() if name.startswith(tuple(f"{p}." for p in DECODER_PARTS))}
    assert encoding | decoding == {name for name, _ in other.named_parameters()}
    assert not encoding & decoding


def with_noise(levels, gain=None):
    """US128's autoencoder of the same weights, with noise in its finest levels."""
    vae = VAE(dataclasses.replace(US128.vae, noise_levels=levels)).requires_grad_(False)
    missing, unknown = vae.load_state_dict(make(US128).state_dict(), strict=False)
    assert not unknown
    assert missing == [f"decoder.noise_gains.{i}" for i in range(2 * levels)], "a gain for each residual block"
    for gains in vae.decoder.noise_gains if gain is not None else ():
        gains.copy_(gain * torch.randn(gains.shape, generator=generator(len(gains))))
    return vae


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_gains_of_0_leave_every_output_unchanged_and_no_noise_leaves_out_the_gains(us128, x, levels):
    z_0, vae = us128.encode(x).mean, with_noise(levels, 0.0)
    noise = torch.randn(2, vae.noise_size(*z_0.shape[2:]), generator=generator())
    assert torch.equal(vae.decode(z_0, noise), us128.decode(z_0))
    assert torch.equal(with_noise(levels, 0.5).decode(z_0), us128.decode(z_0))
    assert not torch.equal(with_noise(levels, 0.5).decode(z_0, noise), us128.decode(z_0))


def test_a_decoder_without_noise_levels_has_no_gains_and_takes_no_numbers(us128, x):
    z_0 = us128.encode(x).mean
    assert us128.noise_size(8, 4) == 0
    assert not [name for name in us128.state_dict() if "noise" in name]
    assert torch.equal(us128.decode(z_0, torch.empty(2, 0)), us128.decode(z_0))


@pytest.mark.parametrize(("levels", "sides"), [(1, [4]), (2, [2, 4]), (3, [1, 2, 4])])
def test_the_noise_has_a_number_for_each_pixel_of_each_residual_block_of_the_finest_levels(levels, sides):
    assert with_noise(levels).noise_size(8, 4) == sum(2 * (8 * side) * (4 * side) for side in sides)


def test_each_residual_block_is_followed_by_its_noise_times_its_gain_map_after_map():
    """StyleGAN section 2: one channel of noise, spread by a gain for each feature."""
    vae, latents = with_noise(2, 0.5), torch.randn(2, 4, 8, 4, generator=generator(1))
    noise = torch.randn(2, vae.noise_size(8, 4), generator=generator(2))

    decoder, gains, taken = vae.decoder, iter(vae.decoder.noise_gains), 0
    features = decoder.middle(decoder.conv_in(vae.post_quant_conv(latents)))
    for i, level in enumerate(decoder.levels):
        for block in level:
            features = block(features)
            if i >= 1:
                shape = features.shape[2:]
                noise_map = noise[:, taken : taken + math.prod(shape)].view(2, 1, *shape)
                features = features + next(gains)[None, :, None, None] * noise_map
                taken += math.prod(shape)
        features = decoder.ups[i](features) if i < 2 else features
    assert taken == noise.shape[1]
    expected = decoder.conv_out(F.silu(decoder.norm_out(features)))
    torch.testing.assert_close(vae.decode_unscaled(latents, noise), expected)


def test_noise_in_more_levels_than_there_are_is_refused():
    with pytest.raises(ValueError, match="4 levels with noise: this decoder has 3"):
        VAE(dataclasses.replace(US128.vae, noise_levels=4))
