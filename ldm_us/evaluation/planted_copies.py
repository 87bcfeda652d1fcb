"""Copies of training images, changed as a generator may change what it remembers: what an audit must find.

Each kind of change draws its strength evenly from a range below. The 8-bit rounding of a saved sample comes last.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

KINDS = ("noise", "flip", "crop", "gain", "all")
NOISE = (0.02, 0.08)  # standard deviation, of a range of grey of 1
KEPT = (0.9, 1.0)  # share of each side that a crop keeps
CONTRAST = (0.7, 1.3)
BRIGHTNESS = (-0.1, 0.1)
GAMMA = (0.7, 1.4)


def plant(x: Tensor, kind: str, generator: Generator) -> Tensor:
    """Change an image (1, H, W) in [0, 1] in one way, or in all of them."""
    if kind in ("flip", "all"):
        x = x.flip(-1)
    if kind in ("crop", "all"):
        x = crop(x, generator)
    if kind in ("gain", "all"):
        contrast, brightness = uniform(CONTRAST, generator), uniform(BRIGHTNESS, generator)
        x = ((x.clamp(0, 1) ** uniform(GAMMA, generator) - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    if kind in ("noise", "all"):
        x = x + torch.randn(x.shape, generator=generator) * uniform(NOISE, generator)
    return (x.clamp(0, 1) * 255).round() / 255


def crop(x: Tensor, generator: Generator) -> Tensor:
    """Keep a part of (1, H, W), its sides and place drawn, and enlarge it to the whole."""
    h, w = x.shape[-2:]
    kept_h, kept_w = round(h * uniform(KEPT, generator)), round(w * uniform(KEPT, generator))
    top = int(torch.randint(h - kept_h + 1, (), generator=generator))
    left = int(torch.randint(w - kept_w + 1, (), generator=generator))
    part = x[None, :, top : top + kept_h, left : left + kept_w]
    return F.interpolate(part, (h, w), mode="bicubic", align_corners=False)[0]


def uniform(between: tuple[float, float], generator: Generator) -> float:
    """Draw a number evenly."""
    low, high = between
    return low + (high - low) * float(torch.rand((), generator=generator))
