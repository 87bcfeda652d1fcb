"""Variations of an image, and of its mask with it, that an ultrasound scanner could have made; of two sorts:

    gain, gamma, tgc    the keys of a scanner: brightness, the curve of the display, brightness by depth. Black stays
                        black: it is where there was no echo, or nothing was scanned.
    zoom, shift, turn   another place of the probe, by little: speckle is wider across than along the beam, so that an
                        image turned by much is one that no scanner makes.

What is shown lies within the image: it is enlarged as far as a shift or turn would else show what is beyond its edges.
Deviates are drawn by the caller, so that an image depends on them alone.
"""

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.config import AUGMENTATIONS

GAIN = 0.08  # largest change, of the grey scale: 5 of the 60 dB that it usually shows
GAMMA = 0.25  # of the logarithm of the exponent
TGC = 0.12  # of the grey scale, from the skin to the bottom: minus to plus half of it
ZOOM = math.log(1.2)  # of the logarithm of the enlargement; none is made smaller
SHIFT = 0.05  # of the side
TURN = 5.0  # degrees
DEVIATES = 7  # that an image takes, whichever variations are asked for: gain, gamma, tgc, zoom, down, right, turn


def augmented(x: Tensor, masks: Tensor, deviates: Tensor, names: Collection[str]) -> tuple[Tensor, Tensor]:
    """Images (b, 1, H, W) in [0, 1], masks (b, 1, H, W), deviates (b, 7) in [-1, 1] -> images, masks.

    names: those of AUGMENTATIONS that are made.
    """
    asked = torch.tensor([name in names for name in (*AUGMENTATIONS[:5], "shift", "turn")])
    gain, gamma, tgc, zoom, down, right, turn = (deviates * asked).unbind(dim=1)
    zoom = (zoom + 1) / 2 if "zoom" in names else zoom
    x = with_keys(x, GAIN * gain, (GAMMA * gamma).exp(), TGC * tgc)
    if not {"zoom", "shift", "turn"} & set(names):
        return x, masks
    grid = places(x.shape[2:], (ZOOM * zoom).exp(), SHIFT * down, SHIFT * right, turn * math.radians(TURN))
    moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    return moved, F.grid_sample(masks.float(), grid, mode="nearest", align_corners=False).to(masks.dtype)


def with_keys(x: Tensor, gain: Tensor, gamma: Tensor, tgc: Tensor) -> Tensor:
    """Images (b, 1, H, W) in [0, 1] under other gain, gamma and time-gain slope, (b,) each; black stays black."""
    depth = torch.linspace(-0.5, 0.5, x.shape[2]).view(1, 1, -1, 1)
    gain, gamma, tgc = (value.view(-1, 1, 1, 1) for value in (gain, gamma, tgc))
    return torch.where(x > 0, x**gamma + gain + tgc * depth, x).clamp(0, 1)


def places(size: torch.Size, zoom: Tensor, down: Tensor, right: Tensor, turn: Tensor) -> Tensor:
    """Where each pixel of the result lies in an image of `size` (H, W), for grid_sample: (b, H, W, 2).

    zoom, down and right (shares of the sides) and turn (radians) are (b,) each; zoom grows where else an edge shows.
    """
    h, w = float(size[0]), float(size[1])
    cos, sin = turn.cos(), turn.sin()
    needed_h = (cos + sin.abs() * w / h) / (1 - 2 * down.abs())
    needed_w = (cos + sin.abs() * h / w) / (1 - 2 * right.abs())
    zoom = torch.maximum(zoom, torch.maximum(needed_h, needed_w))
    rows = torch.stack(
        [
            torch.stack([cos / zoom, -sin * (h / w) / zoom, 2 * right], dim=1),  # grid_sample's x, then its y, in -1..1
            torch.stack([sin * (w / h) / zoom, cos / zoom, 2 * down], dim=1),
        ],
        dim=1,
    )
    return F.affine_grid(rows, [len(zoom), 1, *size], align_corners=False)
