"""The denoising UNet of latent diffusion: z_t, t, text -> eps_hat.   Paper: arXiv 2112.10752 (LDM), section 3.3."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.config import UNetConfig
from ldm_us.networks.layers import GroupNorm, Upsample
from ldm_us.networks.recompute import recomputed
from ldm_us.networks.transformer import SpatialTransformer


class Control(NamedTuple):
    """What a ControlNet adds: one residual for every skip and one for the middle, each of that feature map's shape."""

    skips: list[Tensor]
    middle: Tensor


def timestep_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """(b,) -> (b, width) float32: cosines, then sines, of t at geometric frequencies (DDPM appendix B)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half  # over half, not over half - 1
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)[None]  # (b,) -> (b, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The timestep as a vector that every residual block adds (DDPM appendix B)."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        """(b,) int64 -> (b, 4 width)."""
        emb = timestep_embedding(t, self.width).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(emb)))


class ResBlock(nn.Module):
    """Residual block with the timestep added between its two convolutions."""

    def __init__(self, channels_in: int, channels_out: int, emb_width: int, groups: int):
        super().__init__()
        self.norm_1 = GroupNorm(groups, channels_in, eps=1e-5)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time = nn.Linear(emb_width, channels_out)
        self.norm_2 = GroupNorm(groups, channels_out, eps=1e-5)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, features: Tensor, emb: Tensor) -> Tensor:
        """(b, channels_in, h, w), (b, emb_width) -> (b, channels_out, h, w)."""
        residual = self.conv_1(F.silu(self.norm_1(features)))
        residual = residual + self.time(F.silu(emb))[:, :, None, None]  # (b, c) -> (b, c, 1, 1)
        residual = self.conv_2(F.silu(self.norm_2(residual)))
        return self.skip(features) + residual


class Downsample(nn.Module):
    """Halve h and w by a strided convolution, padded on all four sides (the VAE pads on two)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h / 2, w / 2)."""
        return self.conv(features)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by a transformer where the level has attention."""

    recompute: bool = False  # see ldm_us/networks/recompute.py

    def __init__(self, widths_in: list[int], width: int, attention: bool, config: UNetConfig):
        super().__init__()
        emb_width = 4 * config.width
        self.res = nn.ModuleList(ResBlock(width_in, width, emb_width, config.groups) for width_in in widths_in)
        self.transformers = nn.ModuleList(
            SpatialTransformer(width, config.heads, config.context_width, config.groups) for _ in widths_in if attention
        )

    def forward(
        self, features: Tensor, emb: Tensor, context: Tensor, skips: list[Tensor] | None = None
    ) -> list[Tensor]:
        """(b, c, h, w) -> every block's output (b, width, h, w). In the decoder, block i first takes skips[-1 - i]."""
        outputs = []
        for i in range(len(self.res)):
            skip = None if skips is None else skips[-1 - i]
            block = recomputed(self.block) if self.recompute else self.block
            features = block(i, features, emb, context, skip)
            outputs.append(features)
        return outputs

    def block(self, i: int, features: Tensor, emb: Tensor, context: Tensor, skip: Tensor | None) -> Tensor:
        """Residual block i, which in the decoder first takes a skip, and its transformer: (b, c, h, w) -> the same."""
        if skip is not None:
            features = torch.cat([features, skip], dim=1)
        features = self.res[i](features, emb)
        return self.transformers[i](features, context) if self.transformers else features


class Encoder(nn.Module):
    """The left half: every feature map that the decoder will need, from fine to coarse."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, config.width, 3, padding=1)
        self.levels = nn.ModuleList(
            Level([width_in] + [width] * (config.res_blocks - 1), width, attention, config)
            for width_in, width, attention in zip([config.width, *widths], widths, config.attention, strict=False)
        )
        self.downs = nn.ModuleList(Downsample(width) for width in widths[:-1])

    def forward(
        self, z_t: Tensor, emb: Tensor, context: Tensor, hint_features: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(b, 4, h, w), (b, emb), (b, m, d) -> the last feature map and all of them (skips), 12 for SD 1.5.

        hint_features (b, width, h, w) is what ControlNet adds after the first convolution, and only there.
        """
        features = self.conv_in(z_t)
        if hint_features is not None:
            features = features + hint_features
        skips = [features]
        for i, level in enumerate(self.levels):
            skips += level(skips[-1], emb, context)
            if i < len(self.downs):
                skips.append(self.downs[i](skips[-1]))
        return skips[-1], skips


class Middle(nn.Module):
    """The bottom: residual block, transformer, residual block."""

    recompute: bool = False  # see ldm_us/networks/recompute.py

    def __init__(self, config: UNetConfig):
        super().__init__()
        width, emb_width = config.width * config.multipliers[-1], 4 * config.width
        self.res_1 = ResBlock(width, width, emb_width, config.groups)
        self.transformer = SpatialTransformer(width, config.heads, config.context_width, config.groups)
        self.res_2 = ResBlock(width, width, emb_width, config.groups)

    def forward(self, features: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        blocks = self.res_1, self.transformer, self.res_2
        res_1, transformer, res_2 = map(recomputed, blocks) if self.recompute else blocks
        features = res_1(features, emb)
        features = transformer(features, context)
        return res_2(features, emb)


class Decoder(nn.Module):
    """The right half: each residual block first takes back one skip, from coarse to fine."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.blocks = config.res_blocks + 1  # per level
        skip_widths = encoder_widths(config)
        width_in = skip_widths[-1]
        levels = []
        for multiplier, attention in zip(reversed(config.multipliers), reversed(config.attention), strict=True):
            width = config.width * multiplier
            widths_in = []
            for _ in range(self.blocks):
                widths_in.append(width_in + skip_widths.pop())
                width_in = width
            levels.append(Level(widths_in, width, attention, config))
        self.levels = nn.ModuleList(levels)
        self.ups = nn.ModuleList(Upsample(config.width * m) for m in reversed(config.multipliers[1:]))
        self.norm_out = GroupNorm(config.groups, config.width, eps=1e-5)
        self.conv_out = nn.Conv2d(config.width, config.latent_channels, 3, padding=1)

    def forward(self, features: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        """The middle's feature map and the skips, fine to coarse -> eps_hat (b, 4, h, w)."""
        for i, level in enumerate(self.levels):
            features = level(features, emb, context, skips[-self.blocks :])[-1]
            skips = skips[: -self.blocks]
            if i < len(self.ups):
                features = self.ups[i](features)
        return self.conv_out(F.silu(self.norm_out(features)))


def encoder_widths(config: UNetConfig) -> list[int]:
    """Channels of every skip, fine to coarse: 320 x4, 640 x3, 1280 x5 for SD 1.5."""
    widths = [config.width]
    for i, multiplier in enumerate(config.multipliers):
        last = i == len(config.multipliers) - 1
        widths += [config.width * multiplier] * (config.res_blocks + (0 if last else 1))
    return widths


class UNet(nn.Module):
    """eps_theta(z_t, t, context) of LDM Eq. 3."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.time = TimeEmbedding(config.width)
        self.encoder = Encoder(config)
        self.middle = Middle(config)
        self.decoder = Decoder(config)

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, control: Control | None = None) -> Tensor:
        """(b, 4, h, w), (b,) int64, (b, m, d) -> eps_hat (b, 4, h, w)."""
        emb = self.time(t)
        features, skips = self.encoder(z_t, emb, context)
        features = self.middle(features, emb, context)
        if control is not None:  # ControlNet Eq. 2: one residual per zero convolution
            features = features + control.middle
            skips = [skip + residual for skip, residual in zip(skips, control.skips, strict=True)]
        return self.decoder(features, skips, emb, context)
