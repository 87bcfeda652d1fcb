"""The UNet's transformers: attention among positions and to the text.   Paper: arXiv 2112.10752 (LDM), section 3.3."""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.networks.layers import Attention, GroupNorm


class FeedForward(nn.Module):
    """Gated feed-forward: GEGLU(x) = value * GELU(gate).   Paper: arXiv 2002.05202, section 2."""

    def __init__(self, width: int):
        super().__init__()
        self.proj_in = nn.Linear(width, 8 * width)  # value and gate, 4 width each
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        value, gate = self.proj_in(tokens).chunk(2, dim=-1)  # value first
        return self.proj_out(value * F.gelu(gate))  # GELU with the exact erf


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each pre-normed and residual (LDM appendix E.2.1)."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, context_width)
        self.norm_3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """(b, n, width), (b, m, context_width) -> (b, n, width)."""
        tokens = tokens + self.self_attention(self.norm_1(tokens))
        tokens = tokens + self.cross_attention(self.norm_2(tokens), context)  # LDM Eq. 3 conditions here
        return tokens + self.feed_forward(self.norm_3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer block over the h x w positions of a feature map, as a residual (LDM appendix E.2.1)."""

    def __init__(self, channels: int, heads: int, context_width: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)  # not the 1e-5 of the residual blocks
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, heads, context_width)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """(b, c, h, w), (b, m, context_width) -> (b, c, h, w)."""
        h, w = features.shape[-2:]
        tokens = self.proj_in(self.norm(features)).flatten(2).transpose(1, 2)  # (b, c, h, w) -> (b, h w, c)
        tokens = self.block(tokens, context)
        return features + self.proj_out(tokens.transpose(1, 2).unflatten(2, (h, w)))  # -> (b, c, h, w)
