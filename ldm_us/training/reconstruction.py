"""What the autoencoder alone loses: PSNR of image -> latents -> image on images it was not trained on."""

import math

import torch
from torch import Tensor

from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, framed, load_image
from ldm_us.diffusion.model import LatentDiffusion


def psnr(x_hat: Tensor, x: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of grey images in [0, 1]: 10 log10(1 / mean squared error)."""
    return -10 * math.log10(max(float(torch.mean((x_hat - x) ** 2)), 1e-12))


@torch.no_grad()
def reconstruct(model: LatentDiffusion, x: Tensor) -> Tensor:
    """(b, 3, H, W) in [-1, 1] -> the same images after encoding to the mean latent, decoding and 8-bit rounding."""
    x_hat = model.vae.decode(model.vae.encode(x.to(model.device)).mean).float().cpu()
    return ((x_hat.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def reconstruct_grey(model: LatentDiffusion, x: Tensor) -> Tensor:
    """The same of grey images (b, 1, H, W) in [0, 1]; the mean over the channels."""
    x_hat = reconstruct(model, (2 * x - 1).expand(-1, 3, -1, -1))
    return x_hat.mean(dim=1, keepdim=True) / 2 + 0.5


def reconstruction_psnr(model: LatentDiffusion, records: list[Record], framing: Framing | None = None) -> list[float]:
    """PSNR in dB of each record, in its size by a Framing, else squashed to the size the model was made for."""
    values, framing = [], framing or Framing(model.config.image_size)
    for record in records:
        x = load_image(record.image, framed(record.image, framing))[None]
        grey, grey_hat = (image.mean(dim=1) / 2 + 0.5 for image in (x, reconstruct(model, x)))  # -> (1, H, W) in [0, 1]
        values.append(psnr(grey_hat, grey))
    return values
