"""The augmentation of the paper's reference [24], for a whole batch at once: one resampling, then light and contrast.

torchvision's RandomResizedCrop and RandomRotation, one after the other, are one affine map of the image, so each image
is resampled once. Outside the image is black, as RandomRotation leaves it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.evaluation.protocol.classifier import ClassifierConfig, normalisation

ASPECT = (3 / 4, 4 / 3)  # of the crop, RandomResizedCrop's default
TRIES = 10  # to find a crop that fits, as RandomResizedCrop; then the whole image


def augment(images: Tensor, config: ClassifierConfig, generator: torch.Generator) -> Tensor:
    """(b, 1, S, S) in [0, 1] -> the same shape: cropped, turned, brighter or darker, with more or less contrast."""
    b = len(images)
    box = random_boxes(b, config.crop, generator)
    angle = uniform((b,), -config.rotation, config.rotation, generator) * (math.pi / 180)
    brightness = uniform((b, 1, 1, 1), 1 - config.brightness, 1 + config.brightness, generator)
    contrast = uniform((b, 1, 1, 1), max(0.0, 1 - config.contrast), 1 + config.contrast, generator)

    grid = F.affine_grid(affine(box, angle).to(images.device), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    images = (images * brightness.to(images.device)).clamp(0, 1)
    grey = images.mean(dim=(1, 2, 3), keepdim=True)  # of each image, as ColorJitter
    return torch.lerp(grey, images, contrast.to(images.device)).clamp(0, 1)


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw from low..high."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def random_boxes(b: int, area: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw crops of a square image: (b, 4), centre x and y in [-1, 1], and width and height as shares of the side."""
    areas = uniform((b, TRIES), *area, generator)
    aspects = uniform((b, TRIES), math.log(ASPECT[0]), math.log(ASPECT[1]), generator).exp()
    place = uniform((b, 2), -1, 1, generator)
    width, height = (areas * aspects).sqrt(), (areas / aspects).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    size = torch.cat([width.gather(1, first), height.gather(1, first)], dim=1)  # (b, tries) -> (b, 2)
    size = torch.where(fits.any(dim=1, keepdim=True), size, torch.ones_like(size))
    return torch.cat([place * (1 - size), size], dim=1)


def affine(box: Tensor, angle: Tensor) -> Tensor:
    """Where each place of the result is looked up: it is turned first, then moved into the crop. (b, 2, 3)."""
    cos, sin = angle.cos(), angle.sin()
    x, y, width, height = box.unbind(dim=1)
    rows = [torch.stack([width * cos, -width * sin, x], 1), torch.stack([height * sin, height * cos, y], 1)]
    return torch.stack(rows, dim=1)


def to_input(images: Tensor, config: ClassifierConfig) -> Tensor:
    """(b, 1, S, S) in [0, 1] -> (b, 3, S, S) as the network sees it."""
    images = images.expand(-1, 3, -1, -1)
    if config.imagenet_normalisation:
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in normalisation(config))
        images = (images - mean) / std
    return images.contiguous(memory_format=torch.channels_last)
