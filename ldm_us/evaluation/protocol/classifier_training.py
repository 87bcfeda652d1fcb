"""Train one classifier as the paper's reference [24] does, keep its best epoch, and predict.

Deviations, each of them on purpose: the validation images are split off by near-duplicate family; where equal_steps
is set, an epoch is that of the real images for every arm; the learning rate is not divided by 8 on every fold, which
in [24] is a bug. Of two epochs of equal validation accuracy the one with the lower loss is kept.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.evaluation.protocol.augmentation import augment, to_input
from ldm_us.evaluation.protocol.classifier import ClassifierConfig
from ldm_us.training.batches import batch_indices, stream_generator

AUGMENTATION = 1  # stream of a classifier's seed


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
        chunks.append(logits.double().softmax(dim=1).cpu())
    return torch.cat(chunks)
