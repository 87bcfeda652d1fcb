"""Large pictures by slices of a batch, and where that is too much by overlapping tiles, blended where they overlap.

Nearly all memory of a whole picture is the autoencoder's. A tile has norms and attention of its own: the picture of
tiles is near that of one call, not equal to it.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from ldm_us.config import ModelConfig
from ldm_us.diffusion.model import LatentDiffusion

PLACES = 64 * 64  # of latents that are decoded at a time: at SD 1.5's size one image, whose decoding takes most memory
LEAST = 8  # latents along a side of a tile
OVERLAP = 4  # of a tile's side, one part in so many lies under the next tile


def check_tile(config: ModelConfig, tile: int | None) -> None:
    """Refuse tiles that are no whole number of latents, or too small to overlap."""
    f = config.vae.downsampling
    if tile is not None and (tile % f or tile < LEAST * f):
        raise ValueError(f"--tile {tile}: {config.name} needs a multiple of {f} pixels, {LEAST * f} or more.")


def moments_of(model: LatentDiffusion, x: Tensor) -> Tensor:
    """Images (b, 3, H, W) in [-1, 1] -> moments (b, 2c, h, w), as VAE.moments gives them."""
    f = model.config.vae.downsampling
    slices = x.split(max(1, PLACES * f**2 // x[0, 0].numel()))
    if model.tile is None:
        return torch.cat([model.vae.moments(each) for each in slices])
    side = model.tile // f
    return torch.cat([blended(lambda cut, *_: model.vae.moments(cut), each, side, f, 1) for each in slices])


def decode_tiles(model: LatentDiffusion, z_0: Tensor, noise: Tensor | None) -> Tensor:
    """Latents (b, c, h, w), noise (b, N) or None for none -> (b, 3, H, W), as VAE.decode gives them."""
    assert model.tile is not None, "without tiles it is VAE.decode"
    f, size = model.config.vae.downsampling, z_0.shape[2:]

    def decode_tile(cut: Tensor, top: int, left: int) -> Tensor:
        part = None if noise is None else noise_of_tile(model, noise, size, top, left, cut)
        return model.vae.decode(cut, part)

    return blended(decode_tile, z_0, model.tile // f, 1, f)


def blended(
    call: Callable[[Tensor, int, int], Tensor], values: Tensor, side: int, unit_in: int, unit_out: int
) -> Tensor:
    """call(tile, top, left) of all tiles of (b, c, H, W), side latents wide: their mean, which nearer tiles rule.

    A latent is `unit_in` wide in what is cut, and `unit_out` in what comes out.
    """
    h, w = (length // unit_in for length in values.shape[2:])
    if max(h, w) <= side:
        return call(values, 0, 0)
    high, wide, overlap = min(side, h), min(side, w), side // OVERLAP
    total = weights = torch.zeros(())
    for top, left in product(starts(h, high, overlap), starts(w, wide, overlap)):
        cut = values[:, :, top * unit_in : (top + high) * unit_in, left * unit_in : (left + wide) * unit_in]
        part = call(cut, top, left).float()
        if total.ndim == 0:
            total = part.new_zeros(*part.shape[:2], h * unit_out, w * unit_out)
            weights = torch.zeros_like(total[0, 0])
        ramps = [rising(length * unit_out, overlap * unit_out).to(part) for length in (high, wide)]
        weight = ramps[0][:, None] * ramps[1]
        place = ..., slice(top * unit_out, (top + high) * unit_out), slice(left * unit_out, (left + wide) * unit_out)
        total[place] += weight * part
        weights[place] += weight
    return total / weights


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin; the last ends with the picture, under more of the one before it where they do not divide."""
    return [*range(0, length - side, side - overlap), length - side]


def rising(length: int, overlap: int) -> Tensor:
    """The weights (length,) of a tile along one side: rising to 1 over the overlap, and falling again."""
    up = (torch.arange(length) + 0.5) / overlap
    return torch.minimum(up, up.flip(0)).clamp(max=1.0)


def noise_of_tile(model: LatentDiffusion, noise: Tensor, size: torch.Size, top: int, left: int, cut: Tensor) -> Tensor:
    """The part of a picture's decoder noise (b, N) that a tile of its latents is decoded with."""
    shapes = model.vae.decoder.noise_shapes(*size)
    split = noise.split([h * w for h, w in shapes], dim=1)
    maps = [each.unflatten(1, shape) for each, shape in zip(split, shapes, strict=True)]
    high, wide = cut.shape[2:]
    cuts = []
    for each in maps:
        s = each.shape[1] // size[0]  # pixels of this level for one latent
        cuts.append(each[:, top * s : (top + high) * s, left * s : (left + wide) * s].flatten(1))
    return torch.cat(cuts, dim=1)
