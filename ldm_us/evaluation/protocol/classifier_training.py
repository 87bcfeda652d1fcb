"""Train one classifier as the paper's reference [24] does, keep its best epoch, and predict.

Deviations, each of them on purpose: the validation images are split off by near-duplicate family; where equal_steps
is set, an epoch is that of the real images for every arm; the learning rate is not divided by 8 on every fold, which
in [24] is a bug. Of two epochs of equal validation accuracy the one with the lower loss is kept.

The augmentation is that of [24], for a batch at once: torchvision's RandomResizedCrop and RandomRotation, one after the
other, are one affine map of the image, so each image is resampled once. Outside the image is black, as RandomRotation
leaves it. Light and contrast follow.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.evaluation.protocol.classifier import ClassifierConfig, normalisation
from ldm_us.training.batches import batch_indices, stream_generator

AUGMENTATION = 1  # stream of a classifier's seed
ASPECT = (3 / 4, 4 / 3)  # of the crop, RandomResizedCrop's default
TRIES = 10  # to find a crop that fits, as RandomResizedCrop; then all of the image


@dataclass(frozen=True)
class Images:
    """Decoded images with their classes."""

    pixels: Tensor  # (n, 1, S, S) uint8, grey
    labels: Tensor  # (n,) int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class EpochFigures:
    """How right a classifier is on its validation images after an epoch."""

    epoch: int  # from 1
    accuracy: float
    loss: float


def steps_per_epoch(images: int, batch: int) -> int:
    """The last batch of an epoch is whole too: it runs into the next epoch."""
    return max(1, math.ceil(images / batch))


def train_classifier(
    network: nn.Module,
    train: Images,
    validation: Images,
    config: ClassifierConfig,
    epoch_steps: int,
    seed: int,
    device: str,
    on_epoch: Callable[[EpochFigures], None] | None = None,
) -> list[EpochFigures]:
    """Train in place and leave the best epoch's weights in the network; return the figures of every epoch."""
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    history: list[EpochFigures] = []
    best: dict[str, Tensor] = {}
    for step in range(config.epochs * epoch_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_at(step, config, epoch_steps)
        index = batch_indices(len(train), seed, step, config.batch)
        images = train.pixels[index].to(device).float() / 255
        images = to_input(augment(images, config, stream_generator(seed, AUGMENTATION, step)), config)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = network(images)
        labels = train.labels[index].to(device)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        if (step + 1) % epoch_steps == 0:
            if not math.isfinite(float(loss.detach())):
                raise ValueError(f"step {step + 1}: the loss of a classifier is {float(loss.detach())}. Lower its lr.")
            figures = validate(network, validation, config, device, (step + 1) // epoch_steps)
            history.append(figures)
            if figures == best_epoch(history):
                best = copy.deepcopy(network.state_dict())
            network.train()
            if on_epoch is not None:
                on_epoch(figures)
    network.load_state_dict(best)
    return history


def rate_at(step: int, config: ClassifierConfig, epoch_steps: int) -> float:
    """Linear warm-up over the first epochs, then half a cosine down to near 0: a share of the peak."""
    warmup, steps = config.warmup_epochs * epoch_steps, config.epochs * epoch_steps
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def best_epoch(history: list[EpochFigures]) -> EpochFigures:
    """The epoch of the best validation accuracy; of several the one with the lowest loss, of those the first."""
    return min(history, key=lambda one: (-one.accuracy, one.loss, one.epoch))


def validate(network: nn.Module, images: Images, config: ClassifierConfig, device: str, epoch: int) -> EpochFigures:
    """Accuracy and cross-entropy on images as they are."""
    probabilities = predict(network, images.pixels, config, device)
    right = (probabilities.argmax(dim=1) == images.labels).double().mean()
    loss = F.nll_loss(probabilities.clamp_min(1e-12).log(), images.labels)
    return EpochFigures(epoch, float(right), float(loss))


@torch.no_grad()
def predict(network: nn.Module, pixels: Tensor, config: ClassifierConfig, device: str) -> Tensor:
    """(n, 1, S, S) uint8 -> class probabilities (n, classes) in float64 on the CPU. Leaves the network in eval mode."""
    network.to(device).eval()
    chunks = []
    for chunk in pixels.split(config.batch):
        images = to_input(chunk.to(device).float() / 255, config)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = network(images)
        chunks.append(logits.cpu().double().softmax(dim=1))
    return torch.cat(chunks)


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
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in normalisation(config))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
