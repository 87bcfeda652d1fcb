"""Grain: the speckle that an autoencoder cannot hold, drawn anew on its output.   After AV1's film grain (DCC 2018).

A decoder that minimises L1 answers speckle that its latent does not hold with the median, which is smooth. The
residual x - D(E(x)) of training images tells what is missing: how strong it is at each grey, and over which pixels it
is correlated. So x = D(z) + g(D(z)) (h * n), with white noise n, h from the residual's mean power spectrum in bands of
depth, for a beam widens with it, and g its standard deviation by grey.
Norkin and Birkbeck, "Film Grain Synthesis for AV1 Video Codec", 2018.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BANDS = 8  # of depth, from the top of the image to its bottom
SMALLEST = 12 * BANDS  # pixels along one side that grain can be measured on: a band must hold the height of its grains
GREYS = 12  # bins of grey from 0 to 1
REACH = 16  # pixels to each side over which grains are correlated: h has 2 * 16 + 1 taps a side
FEWEST = 4  # images that tell it
LEAST = 64  # pixels of a bin of grey that tell its gain


class Grain(nn.Module):
    """What an autoencoder loses of the texture of its training images; the numbers are measured, not trained."""

    taps: Tensor  # (bands, 33, 33): h of each band of depth; its energy is the band's strength beside g
    gain: Tensor  # (greys,): g, the root mean square of the residual at the middle of each bin of grey

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("taps", torch.zeros(bands, 2 * REACH + 1, 2 * REACH + 1))
        self.register_buffer("gain", torch.zeros(GREYS))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Decoded images (b, c, H, W) in [0, 1], white noise (b, 1, H + 32, W + 32) -> images with grain, in [0, 1]."""
        with torch.autocast(x.device.type, enabled=False):  # sums of half precision would show in the grey levels
            grains = F.conv2d(noise, self.taps[:, None])  # h * n: (b, bands, H, W)
            rows = depth_weights(x.shape[2], len(self.taps)).to(x)  # (bands, H): each between its two nearest bands
            grain = torch.einsum("b k h w, k h -> b h w", grains, rows)[:, None]
        grey = x.mean(dim=1, keepdim=True)
        return (x + gain_at(self.gain, grey) * grain).clamp(0.0, 1.0)  # Grain Eq. 1


def noise_shape(x: Tensor) -> tuple[int, ...]:
    """The shape of the white noise for images (b, c, H, W)."""
    return len(x), 1, x.shape[2] + 2 * REACH, x.shape[3] + 2 * REACH


def gain_at(gain: Tensor, grey: Tensor) -> Tensor:
    """g at every pixel of grey in [0, 1], straight lines between the middles of the bins."""
    place = (grey * GREYS - 0.5).clamp(0, GREYS - 1)
    low = place.floor().long().clamp(max=GREYS - 2)
    share = place - low
    return (1 - share) * gain[low] + share * gain[low + 1]


def depth_weights(height: int, bands: int) -> Tensor:
    """(bands, H): how much each band counts at each row; 1 at its middle, 0 at the middle of the next."""
    middles = (torch.arange(bands) + 0.5) / bands
    rows = ((torch.arange(height) + 0.5) / height).clamp(float(middles[0]), float(middles[-1]))
    return (1 - (rows[None] - middles[:, None]).abs() * bands).clamp(min=0)


def estimate_grain(pairs: Iterable[tuple[Tensor, Tensor]]) -> Grain:
    """Grey images (H, W) in [0, 1] of one size, each with its reconstruction -> what the reconstructions lack.

    Raise ValueError where there are too few images, or they are too small for a band to hold its grains.
    """
    pairs = list(pairs)
    if len(pairs) < FEWEST:
        raise ValueError(f"grain is measured on {FEWEST} images or more, not {len(pairs)}. Give more of them.")
    x, x_hat = (torch.stack(each).double() for each in zip(*pairs, strict=True))
    if min(x.shape[1:]) < SMALLEST:
        raise ValueError(f"grain is measured on images of {SMALLEST} pixels or more, not {min(x.shape[1:])}.")
    grain, residual = Grain(BANDS), x - x_hat
    grain.gain.copy_(gains(residual, x_hat))
    plain = residual / gain_at(grain.gain.double(), x_hat).clamp(min=1e-6)
    for taps, rows in zip(grain.taps, plain[:, : x.shape[1] // BANDS * BANDS].chunk(BANDS, dim=1), strict=True):
        taps.copy_(kernel_of(rows))
    return grain


def kernel_of(texture: Tensor) -> Tensor:
    """The kernel (33, 33) that gives white noise the mean power spectrum of textures (n, rows, columns)."""
    size = texture.shape[1:]
    windows = (torch.hann_window(length, periodic=False, dtype=texture.dtype) for length in size)
    window = torch.outer(*windows)
    window = window / window.square().mean().sqrt()  # leaves the variance as it is
    power = torch.fft.fft2((texture - texture.mean(dim=(1, 2), keepdim=True)) * window).abs().square().mean(dim=0)
    whole = torch.fft.fftshift(torch.fft.ifft2((power / power.numel()).sqrt()).real)  # zero phase: |H| = sqrt(power)
    kernel = torch.zeros(2 * REACH + 1, 2 * REACH + 1, dtype=texture.dtype)
    down, across = (min(REACH, (length - 1) // 2) for length in size)
    middle = size[0] // 2, size[1] // 2
    kernel[REACH - down : REACH + down + 1, REACH - across : REACH + across + 1] = whole[
        middle[0] - down : middle[0] + down + 1, middle[1] - across : middle[1] + across + 1
    ]
    return kernel


def gains(residual: Tensor, x_hat: Tensor) -> Tensor:
    """(greys,): the root mean square of the residual by grey; a bin of few pixels takes that of its neighbour."""
    bins = (x_hat * GREYS).long().clamp(0, GREYS - 1)
    found = [residual[bins == i] for i in range(GREYS)]
    told = [i for i in range(GREYS) if len(found[i]) >= LEAST]
    nearest = [min(told, key=lambda other, i=i: abs(other - i)) for i in range(GREYS)]  # type: ignore[misc]
    return torch.stack([found[i].square().mean().sqrt() for i in nearest])
