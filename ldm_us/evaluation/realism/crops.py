"""A small network that tells crops of two sets of images apart: every pixel as it is, so that it can see grain.

Four 3x3 convolutions of one width, the second and the third of stride 2, and a mean over the crop. It learns from crops
at random places, mirrored or not, as a judge learns from images, but none is blurred, scaled or made brighter. The
statistics of BatchNorm are those of many crops: GroupNorm, those of one, divided out how strong its texture is, and the
network then learned nothing of samples that it now tells from phantoms.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.evaluation.judge.training import WEIGHT_DECAY, learning_rate_at
from ldm_us.evaluation.realism.measures import BLACK
from ldm_us.training.batches import draw_mirrored, mirror, stream_generator

CROP = 32  # pixels along a side
A_SIDE = 4  # crops along a side of an image that are scored, evenly spread; fewer where they would overlap
WIDTHS = (1, 32, 32, 32, 32)  # channels
STRIDES = (1, 2, 2, 1)
BATCH = 64  # crops a step, half of each set


def fresh_network(seed: int) -> nn.Sequential:
    """(b, 1, 32, 32) in [-1, 1] -> (b, 1), above 0 for the second set; PyTorch's initial weights, from this seed."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for (before, width), stride in zip(pairwise(WIDTHS), STRIDES, strict=True):
            conv = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 1))


def random_crops(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(n, H, W) -> crops (count, 1, 32, 32) of images drawn at random, at random places, half of them mirrored."""
    height, width = images.shape[1:]
    drawn = [
        torch.randint(n, (count, 1, 1), generator=generator) for n in (len(images), height - CROP + 1, width - CROP + 1)
    ]
    across = torch.arange(CROP)
    crops = images[drawn[0], drawn[1] + across[:, None], drawn[2] + across][:, None]
    return mirror(crops, draw_mirrored(count, True, generator))


def train_network(
    first: Tensor, second: Tensor, steps: int, seed: int, on_step: Callable[[], object] | None = None
) -> nn.Sequential:
    """Learn to tell crops of the second images from those of the first, (n, H, W) and (m, H, W), uint8."""
    network = fresh_network(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    target = torch.arange(BATCH).ge(BATCH // 2).float()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        generator = stream_generator(seed, 1, step)
        crops = torch.cat([random_crops(images, BATCH // 2, generator) for images in (first, second)])

        loss = F.binary_cross_entropy_with_logits(network(crops.float() / 127.5 - 1)[:, 0], target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step()
    return network.eval().requires_grad_(False)


def score_crops(network: nn.Sequential, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(n, H, W), uint8 -> the logit of every crop on a grid that is not black, (k,), and which image it is of, (k,).

    Black is what lies outside of the fan. It is told by the mean, which does not depend on the grain.
    """
    places = [np.linspace(0, side - CROP, min(A_SIDE, side // CROP)).round().astype(int) for side in images.shape[1:]]
    crops = torch.stack([images[:, y : y + CROP, x : x + CROP] for y in places[0] for x in places[1]], dim=1).float()
    shown = crops.mean(dim=(2, 3)) >= BLACK  # (n, crops of an image)
    logits = [network(chunk[:, None] / 127.5 - 1)[:, 0] for chunk in crops[shown].split(4 * BATCH)]
    return torch.cat(logits).double().numpy(), shown.nonzero()[:, 0].numpy()
