"""Train a judge on real images, and measure it on others.

The loss: cross-entropy of the class; binary cross-entropy and soft Dice (V-Net, arXiv 1606.04797) of the lesion. A
sample is a little smoother than an image, because an autoencoder drew it, and may be brighter or darker. Blur, contrast
and noise drawn anew for every image teach the judge to look past that. Zoom, stretch and shift show it lesions of other
sizes in other places: an asked mask may be anywhere, and a few hundred real images show few places.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.data.organ import UNKNOWN
from ldm_us.data.records import Record
from ldm_us.evaluation.figures import accuracy, by_class, confusion, mean_and_spread, share_of
from ldm_us.evaluation.judge.network import Judge, JudgeConfig, JudgeOutput, fresh_judge, judge
from ldm_us.evaluation.mask_errors import dice
from ldm_us.training.batches import batch_indices, draw_mirrored, mirror, stream_generator
from ldm_us.training.dataset import TrainingSet, load_training_set

LEARNING_RATE = 3e-3  # the highest, after the warm-up
WARMUP = 0.1  # share of the steps
WEIGHT_DECAY = 0.01
BLUR = (0.3, 1.6)  # sigma in pixels of a 128x128 image
ZOOM, STRETCH, SHIFT = 0.25, 0.1, 0.1  # logarithm of the zoom, of height against width; share of a side, either way
LEAST_KEPT = 0.5  # share of a lesion's zoomed area that must stay in view
GAMMA, CONTRAST, BRIGHTNESS, NOISE = 0.3, 0.3, 0.1, 0.04  # the largest change of each, in images of [0, 1]


def train_judge(
    records: list[Record],
    size: int,
    steps: int,
    batch: int,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    device: str = "cpu",
) -> Judge:
    """A judge of images of `size` pixels; the same seed gives the same judge. on_step sees (step, loss)."""
    data = load_training_set(records, size)
    assert data.pixels is not None
    check_teachable(data)
    classes = sorted({record.label for record in records})
    network = fresh_judge(JudgeConfig(size=size), seed, classes).to(device)
    labels = torch.tensor([classes.index(record.label) for record in records])
    weight = len(labels) / (len(classes) * labels.bincount(minlength=len(classes)))  # rare classes count as much
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        index = batch_indices(len(data), seed, step, batch)
        images, masks = data.pixels[index].float() / 255, data.masks[index].float()
        images, masks = augment(images, masks, stream_generator(seed, 1, step))

        seen, named, drawn, shares = (each.to(device) for each in (images, labels[index], masks, weight))
        loss = judge_loss(network(seen), named, drawn, shares)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(float(loss.detach())):
            raise ValueError(f"step {step + 1}: the loss of the judge is {float(loss.detach())}. Try another --seed.")
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))
    return network.eval().requires_grad_(False)


def judge_loss(output: JudgeOutput, labels: Tensor, masks: Tensor, weight: Tensor | None = None) -> Tensor:
    """The sum of the three losses: labels (b,) int64, masks (b, 1, H, W) in {0, 1} -> a scalar."""
    classes = F.cross_entropy(output.class_logits, labels, weight)
    pixels = F.binary_cross_entropy_with_logits(output.lesion_logits, masks)
    lesion = output.lesion_logits.sigmoid()
    overlap, total = (lesion * masks).flatten(1).sum(1), (lesion + masks).flatten(1).sum(1)
    soft_dice = (2 * overlap + 1) / (total + 1)  # 1 pixel more in each: an empty mask asks for no lesion
    return classes + pixels + (1 - soft_dice).mean()


def learning_rate_at(step: int, steps: int) -> float:
    """Linear warm-up from near 0, then half a cosine down to near 0: one cycle."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1)))


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change images (b, 1, H, W) in [0, 1] in ways that change neither class nor lesion, and mirror their masks too."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    mirrored = draw_mirrored(len(images), True, generator)
    images, masks = zoom_and_shift(mirror(images, mirrored), mirror(masks, mirrored), generator)
    sigma = float(draw(*BLUR)[0]) * images.shape[-1] / 128  # one a batch, and of it more or less in each image
    images = torch.lerp(images, gaussian_blur(images, sigma), draw(0, 1))

    images = images.clamp(min=1e-3) ** draw(-GAMMA, GAMMA).exp()
    images = 0.5 + (images - 0.5) * draw(1 - CONTRAST, 1 + CONTRAST) + draw(-BRIGHTNESS, BRIGHTNESS)
    images = images + draw(0, NOISE) * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1), masks


def zoom_and_shift(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zoom, stretch and shift each image (b, 1, H, W) and its mask alike; beyond the edge both are mirrored.

    An image whose lesion would leave the view by more than half stays as it is: its class could not be seen any more.
    """

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(len(images), generator=generator) - 1)

    zoom, stretch, down, across = draw(ZOOM), draw(STRETCH), draw(SHIFT), draw(SHIFT)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = (-zoom - stretch / 2).exp(), (-zoom + stretch / 2).exp()
    affine[:, 0, 2], affine[:, 1, 2] = 2 * across, 2 * down  # a side is 2 long
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    moved_masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    zoomed = masks.flatten(1).sum(1) * (2 * zoom).exp()
    kept = (moved_masks.flatten(1).sum(1) >= LEAST_KEPT * zoomed).view(-1, 1, 1, 1)
    return torch.where(kept, moved, images), torch.where(kept, moved_masks, masks)


def check_teachable(data: TrainingSet) -> None:
    """Refuse images that cannot teach the classes or the lesions."""
    classes = {record.label for record in data.records} - {UNKNOWN}
    if len(classes) == 1:
        raise ValueError(f"all images are {classes.pop()}, and a judge tells classes apart. Add images of another one.")
    for record, drawn in zip(data.records, data.drawn().tolist(), strict=True):
        if record.label == UNKNOWN:
            raise ValueError(f"{record.image}: a judge learns classes, and this image has none. Add its class.")
        if record.shows and not drawn:
            raise ValueError(
                f"{record.image}: a {record.label} image without a lesion in its mask, so it would teach a judge to "
                "overlook lesions. Add its mask, or remove it."
            )


def measure_judge(network: Judge, records: list[Record]) -> dict[str, Any]:
    """How right the judge is on images that it has not seen: class, lesion, and lesions where there are none."""
    data = load_training_set(records, network.config.size)
    assert data.pixels is not None
    labels = [record.label for record in records]
    verdict = judge(network, data.pixels[:].float() / 255)
    figures: dict[str, Any] = {
        "images": len(records),
        "accuracy": accuracy(labels, verdict.labels),
        "confusion": confusion(labels, verdict.labels, network.classes),
    }
    lesion = data.drawn()
    if bool(lesion.any()):
        values = dice(verdict.masks[lesion], data.masks[lesion].float())
        of_lesions = [label for label, has in zip(labels, lesion, strict=True) if has]
        figures["dice"] = by_class(mean_and_spread, values.tolist(), of_lesions)
    if bool((~lesion).any()):
        figures["no_lesion_found_where_none_is"] = share_of((~verdict.masks[~lesion].flatten(1).bool().any(1)).tolist())
    return figures


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """(b, 1, H, W) -> the same, convolved with a Gaussian of `sigma` pixels; edges are repeated."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))
