"""What the networks share: attention, group norm and upsampling; and where float16 is too short for one."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V.   Paper: arXiv 1706.03762, Eq. 1; as LDM Eq. 3 uses it."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, qkv_bias: bool = False):
        super().__init__()
        context_width = width if context_width is None else context_width
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=qkv_bias)
        self.to_k = nn.Linear(context_width, width, bias=qkv_bias)
        self.to_v = nn.Linear(context_width, width, bias=qkv_bias)
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor | None = None, causal: bool = False) -> Tensor:
        """(b, n, width), context (b, m, context_width) or None for self-attention -> (b, n, width)."""
        context = tokens if context is None else context
        q = rearrange(self.to_q(tokens), "b n (k d) -> b k n d", k=self.heads)
        k = rearrange(self.to_k(context), "b m (k d) -> b k m d", k=self.heads)
        v = rearrange(self.to_v(context), "b m (k d) -> b k m d", k=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # Attention Eq. 1
        return self.to_out(rearrange(attended, "b k n d -> b n (k d)"))


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose mean and variance are taken in float32, whatever the input.   Paper: arXiv 1803.08494.

    eps has no default: SD 1.5 uses 1e-5 in the UNet's residual blocks and output, 1e-6 in its transformers and the VAE.
    """

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__(groups, channels, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w), same dtype."""
        normed = F.group_norm(features.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(features.dtype)


class Upsample(nn.Module):
    """Double h and w: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, 2h, 2w)."""
        return self.conv(F.interpolate(features, scale_factor=2.0, mode="nearest"))


def without_float16(features: Tensor) -> AbstractContextManager:
    """Leave out autocast to float16 inside: it ends at 65504, and activations of SD 1.5's autoencoder can go beyond."""
    kind = features.device.type
    half = not features.is_meta and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return torch.autocast(kind, enabled=False) if half else nullcontext()
