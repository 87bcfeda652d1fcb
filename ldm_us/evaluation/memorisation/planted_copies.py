"""Copies of training images, changed as a generator may change what it remembers: what an audit must find.

Each kind of change draws its strength evenly from a range below. The 8-bit rounding of a saved sample comes last. A
small rotation is none of the changes that the scores search for, so what is found of it says how far they reach.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

KINDS = ("noise", "flip", "crop", "gain", "all", "zoom", "depth")
OUTSIDE = ("rotation",)  # by 3 degrees, to the left or to the right
ROTATION = 3.0  # degrees
BLUR = 1.0  # pixels of a side of 128, standard deviation: about what an autoencoder loses
NOISE = (0.02, 0.08)  # standard deviation, of a range of grey of 1
KEPT = (0.9, 1.0)  # share of each side that a crop keeps
ZOOM = (0.7, 0.9)  # share of both sides that a scanner's zoom keeps
DEPTH = (0.7, 1.4)  # depth that is shown, of that of the original: more of it is the border's
CONTRAST = (0.7, 1.3)
BRIGHTNESS = (-0.1, 0.1)
GAMMA = (0.7, 1.4)


def plant(x: Tensor, kind: str, generator: Generator) -> Tensor:
    """Change an image (1, H, W) in [0, 1] in one way, or in all of them."""
    if kind in ("flip", "all"):
        x = x.flip(-1)
    if kind == "rotation":
        x = rotate(x, ROTATION if torch.rand((), generator=generator) < 0.5 else -ROTATION)
    if kind in ("crop", "all"):
        x = crop(x, uniform(KEPT, generator), uniform(KEPT, generator), generator)
    if kind == "zoom":
        kept = uniform(ZOOM, generator)
        x = crop(x, kept, kept, generator)
    if kind == "depth":
        x = at_depth(x, uniform(DEPTH, generator))
    if kind in ("gain", "all"):
        contrast, brightness = uniform(CONTRAST, generator), uniform(BRIGHTNESS, generator)
        x = ((x.clamp(0, 1) ** uniform(GAMMA, generator) - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    if kind in ("noise", "all", "zoom", "depth"):
        x = x + torch.randn(x.shape, generator=generator) * uniform(NOISE, generator)
    return (x.clamp(0, 1) * 255).round() / 255


def crop(x: Tensor, down: float, across: float, generator: Generator) -> Tensor:
    """Keep these shares of the sides of (1, H, W), at a place that is drawn, and enlarge them to the whole."""
    h, w = x.shape[-2:]
    kept_h, kept_w = round(h * down), round(w * across)
    top = int(torch.randint(h - kept_h + 1, (), generator=generator))
    left = int(torch.randint(w - kept_w + 1, (), generator=generator))
    part = x[None, :, top : top + kept_h, left : left + kept_w]
    return F.interpolate(part, (h, w), mode="bicubic", align_corners=False)[0]


def at_depth(x: Tensor, depth: float) -> Tensor:
    """Show (1, H, W) to another depth, from the same skin down, at the old size; below x there is its last row."""
    h, w = x.shape[-2:]
    rows = round(h * depth)
    seen = F.pad(x[None], (0, 0, 0, max(0, rows - h)), mode="replicate")[:, :, :rows]
    return F.interpolate(seen, (h, w), mode="bicubic", antialias=depth > 1, align_corners=False)[0]


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Turn (1, H, W) about its centre; what comes in from outside is the border."""
    h, w = x.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[[cos, -sin * h / w, 0.0], [sin * w / h, cos, 0.0]]])  # in units of half a side
    grid = F.affine_grid(turn, [1, 1, h, w], align_corners=False)
    return F.grid_sample(x[None], grid, "bicubic", "border", align_corners=False)[0]


def blur(x: Tensor) -> Tensor:
    """Soften images (b, 1, H, W) in [0, 1] by a Gaussian of BLUR, and round them to 8 bits."""
    from torchvision.transforms.functional import gaussian_blur

    sigma = BLUR * x.shape[-1] / 128
    soft: Tensor = gaussian_blur(x, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)
    return (soft * 255).round() / 255


def uniform(between: tuple[float, float], generator: Generator) -> float:
    """Draw a number evenly."""
    low, high = between
    return low + (high - low) * float(torch.rand((), generator=generator))
