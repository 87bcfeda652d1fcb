"""The autoencoder between pixels and latents.   Paper: arXiv 2112.10752 (LDM), section 3.1; arXiv 1312.6114 (VAE).

A decoder may add noise of a learned gain, for texture that latents do not hold.   Paper: arXiv 1812.04948 (StyleGAN).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.config import VAEConfig
from ldm_us.networks.layers import Attention, GroupNorm, Upsample, without_float16
from ldm_us.networks.recompute import recomputed

# The modules of a VAE behind its latents: trained alone, they draw better pixels from the very latents that a denoiser
# was trained on.
DECODER_PARTS = ("decoder", "post_quant_conv")
EPS = 1e-6  # of every GroupNorm in the VAE; the UNet's residual blocks use 1e-5
INITIAL_GAIN = 0.3  # of a decoder's noise; a gain of 0 would stay there: the sign of noise tells a loss nothing


@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal distribution over latents, independent in each element: mean and std, each (b, c, h, w)."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents; the noise comes from a CPU generator, so that it is the same for every device."""
        eps = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean + self.std * eps.to(self.mean)  # VAE section 2.4


def posterior_from_moments(moments: Tensor, scale: float) -> DiagonalGaussian:
    """(b, 2c, h, w) unscaled mean and log variance -> the distribution of the SCALED latents."""
    mean, logvar = moments.chunk(2, dim=1)
    std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
    return DiagonalGaussian(scale * mean, scale * std)


def kl_to_standard_normal(moments: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, 1)) of the unscaled latents, summed over each image: (b, 2c, h, w) -> (b,)."""
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30.0, 20.0)
    return 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum(dim=(1, 2, 3))  # VAE Eq. 10


class ResBlock(nn.Module):
    """Residual block without a timestep."""

    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm_1 = GroupNorm(groups, channels_in, eps=EPS)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_2 = GroupNorm(groups, channels_out, eps=EPS)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(b, channels_in, h, w) -> (b, channels_out, h, w)."""
        residual = self.conv_1(F.silu(self.norm_1(features)))
        residual = self.conv_2(F.silu(self.norm_2(residual)))
        return self.skip(features) + residual


class AttentionBlock(nn.Module):
    """Self-attention over the h x w positions, one head as wide as the features, as a residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=EPS)
        self.attention = Attention(channels, heads=1, qkv_bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        h, w = features.shape[-2:]
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # (b, c, h, w) -> (b, h w, c)
        return features + self.attention(tokens).transpose(1, 2).unflatten(2, (h, w))


class Middle(nn.Module):
    """The bottom of encoder and decoder: residual block, attention, residual block."""

    recompute: bool = False  # see ldm_us/networks/recompute.py

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.res_1 = ResBlock(channels, channels, groups)
        self.attention = AttentionBlock(channels, groups)
        self.res_2 = ResBlock(channels, channels, groups)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        for block in (self.res_1, self.attention, self.res_2):
            features = recomputed(block)(features) if self.recompute else block(features)
        return features


class Downsample(nn.Module):
    """Halve h and w; zeros are added on the right and at the bottom only, as the original weights expect."""

    padding = (0, 1, 0, 1)  # left, right, top, bottom

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h / 2, w / 2)."""
        return self.conv(F.pad(features, self.padding))


class Level(nn.Sequential):
    """The residual blocks of one resolution; the first one changes the width."""

    recompute: bool = False  # see ldm_us/networks/recompute.py

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int):
        widths = [channels_in, *[channels_out] * blocks]
        super().__init__(*(ResBlock(a, b, groups) for a, b in pairwise(widths)))

    def forward(self, features: Tensor, noise: Iterator[Tensor] | None = None) -> Tensor:
        """(b, channels_in, h, w), noise (b, channels_out, h, w) of each block, or none -> (b, channels_out, h, w)."""
        for block in self:
            features = recomputed(block)(features) if self.recompute else block(features)
            if noise is not None:
                features = features + next(noise).to(features.dtype)  # StyleGAN section 2, there behind a convolution
        return features


class Encoder(nn.Module):
    """Pixels -> mean and log variance of the latents, before quant_conv."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.width, *(config.width * m for m in config.multipliers)]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.levels = nn.ModuleList(Level(a, b, config.res_blocks, config.groups) for a, b in pairwise(widths))
        self.downs = nn.ModuleList(Downsample(width) for width in widths[1:-1])
        self.middle = Middle(widths[-1], config.groups)
        self.norm_out = GroupNorm(config.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) -> (b, 2c, h, w)."""
        features = self.conv_in(x)
        for i, level in enumerate(self.levels):
            features = level(features)
            if i < len(self.downs):
                features = self.downs[i](features)
        return self.conv_out(F.silu(self.norm_out(self.middle(features))))


class Decoder(nn.Module):
    """Latents, after post_quant_conv -> pixels. Its levels run from coarse to fine."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        if config.noise_levels > len(config.multipliers):
            raise ValueError(f"{config.noise_levels} levels with noise: this decoder has {len(config.multipliers)}.")
        widths = [config.width * m for m in reversed(config.multipliers)]
        self.blocks = config.res_blocks + 1  # of a level
        noisy = widths[len(widths) - config.noise_levels :]
        self.noise_gains = nn.ParameterList(torch.full((c,), INITIAL_GAIN) for c in noisy for _ in range(self.blocks))
        widths = [widths[0], *widths]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], config.groups)
        self.levels = nn.ModuleList(Level(a, b, self.blocks, config.groups) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(Upsample(width) for width in widths[1:-1])
        self.norm_out = GroupNorm(config.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def noise_shapes(self, h: int, w: int) -> list[tuple[int, int]]:
        """Height and width of the noise of each gain, from coarse to fine, for latents of h x w."""
        first = len(self.levels) - len(self.noise_gains) // self.blocks
        return [(h * 2**i, w * 2**i) for i in range(first, len(self.levels)) for _ in range(self.blocks)]

    def scaled(self, noise: Tensor, h: int, w: int) -> Iterator[Tensor]:
        """Noise (b, N) -> what each block of the noisy levels adds, from coarse to fine, for latents of h x w."""
        shapes = self.noise_shapes(h, w)
        maps = noise.split([math.prod(shape) for shape in shapes], dim=1)
        for gain, noise_map, shape in zip(self.noise_gains, maps, shapes, strict=True):
            yield gain.view(-1, 1, 1) * noise_map.unflatten(1, (1, *shape))  # (c, 1, 1), (b, 1, h, w) -> (b, c, h, w)

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """(b, c, h, w), noise (b, N) or None for none -> (b, 3, H, W)."""
        added = None if noise is None else self.scaled(noise.to(latents), *latents.shape[2:])
        first = len(self.levels) - len(self.noise_gains) // self.blocks
        features = self.middle(self.conv_in(latents))
        for i, level in enumerate(self.levels):
            features = level(features, added if i >= first else None)
            if i < len(self.ups):
                features = self.ups[i](features)
        return self.conv_out(F.silu(self.norm_out(features)))


class VAE(nn.Module):
    """E and D of LDM section 3.1, with the scale of its latents."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    @torch.no_grad()
    def whiten(self, mean: Tensor, std: Tensor) -> None:
        """Fold the mean and std (c,) of each unscaled latent channel into the two 1x1 convolutions around the latents.

        Afterwards every channel has mean 0 and std 1, and the same images come out. Source: arXiv 2312.02696, appendix.
        """
        mean, std = mean.to(self.quant_conv.weight), std.to(self.quant_conv.weight)
        gain = torch.cat([1 / std, torch.ones_like(std)])  # of the mean, and of the log variance
        shift = torch.cat([-mean / std, -2 * std.log()])
        self.quant_conv.weight.mul_(gain.view(-1, 1, 1, 1))
        bias = self.quant_conv.get_parameter("bias")
        bias.mul_(gain).add_(shift)  # Whitening Eq. 1: (E(x) - mean) / std
        weight = self.post_quant_conv.weight
        self.post_quant_conv.get_parameter("bias").add_(weight[:, :, 0, 0] @ mean)
        weight.mul_(std.view(1, -1, 1, 1))

    def moments(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] -> (b, 2c, h, w): unscaled mean and log variance."""
        with without_float16(x):
            return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """(b, 3, H, W) in [-1, 1] -> the distribution of the scaled latents; training samples it."""
        return posterior_from_moments(self.moments(x), self.scale)

    def decode(self, z_0: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents (b, c, h, w), noise (b, N) or None for none -> (b, 3, H, W), about [-1, 1]."""
        return self.decode_unscaled(z_0 / self.scale, noise)

    def decode_unscaled(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents as `moments` gives them (b, c, h, w), noise (b, N) or None for none -> (b, 3, H, W)."""
        with without_float16(latents):
            return self.decoder(self.post_quant_conv(latents), noise)

    def noise_size(self, h: int, w: int) -> int:
        """N, the numbers of noise that latents of h x w are decoded with; 0 where the decoder adds none."""
        return sum(math.prod(shape) for shape in self.decoder.noise_shapes(h, w))
