"""The judge: a small network that names the class of an image and marks its lesion, to measure samples with.

An encoder-decoder in the manner of U-Net (arXiv 1505.04597), with skips that are added and not concatenated. It is
trained on real images alone and never sees an asked class or mask, so what it says of a sample is evidence. It is small
and can be wrong: its figures on held-out real images, which its file carries, say how much it can tell at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.data.organ import BREAST


@dataclass(frozen=True)
class JudgeConfig:
    """What fixes the network."""

    size: int = 128  # pixels along one side of the images that it sees
    widths: tuple[int, ...] = (16, 32, 64, 96)  # channels per level, the first at half the pixels of a side
    groups: int = 8  # of every GroupNorm

    @property
    def size_multiple(self) -> int:
        """Pixels that the image size must be a multiple of: one halving a level."""
        return int(2 ** len(self.widths))


class JudgeOutput(NamedTuple):
    """What the network says of a batch."""

    class_logits: Tensor  # (b, classes), in the order of the judge's classes
    lesion_logits: Tensor  # (b, 1, H, W), positive where it sees a lesion


class Verdict(NamedTuple):
    """What the judge decides on n images."""

    labels: list[str]
    masks: Tensor  # (n, 1, H, W) in {0, 1}


def conv_block(channels_in: int, channels_out: int, groups: int) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU: no statistics across a batch, so an image is judged for itself."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups, channels_out), nn.ReLU())


class Judge(nn.Module):
    """Names the class and marks the lesion."""

    def __init__(self, config: JudgeConfig, classes: Sequence[str] = BREAST.classes):
        super().__init__()
        self.config, self.classes = config, tuple(classes)
        widths, groups = config.widths, config.groups
        self.stem = nn.Conv2d(1, widths[0], 5, stride=2, padding=2)
        self.encoder = nn.ModuleList(
            nn.Sequential(conv_block(before, width, groups), conv_block(width, width, groups))
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(deep, width, 1) for width, deep in pairwise(widths))
        self.decoder = nn.ModuleList(conv_block(width, width, groups) for width in widths[:-1])
        self.to_class = nn.Linear(2 * widths[-1], len(self.classes))
        self.to_lesion = nn.Conv2d(widths[0], 4, 3, padding=1)  # the 2x2 pixels that the stem made one

    def encode(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """(b, 1, H, W) in [0, 1] -> the features of every level, and the deepest, (b, c, h, w), pooled to (b, 2c)."""
        features = self.stem(2 * images - 1)  # (b, 1, H, W) -> (b, c, H/2, W/2)
        skips = []
        for level, block in enumerate(self.encoder):
            features = block(F.avg_pool2d(features, 2) if level > 0 else features)
            skips.append(features)
        return skips, torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)

    def forward(self, images: Tensor) -> JudgeOutput:
        """(b, 1, H, W) in [0, 1], H and W multiples of 16 -> class (b, classes) and lesion (b, 1, H, W) logits."""
        skips, pooled = self.encode(images)
        class_logits = self.to_class(pooled)

        features = skips[-1]
        for level in reversed(range(len(self.decoder))):
            upper = F.interpolate(self.narrow[level](features), scale_factor=2.0, mode="nearest")
            features = self.decoder[level](skips[level] + upper)
        lesion_logits = F.pixel_shuffle(self.to_lesion(features), 2)  # (b, 4, H/2, W/2) -> (b, 1, H, W)
        return JudgeOutput(class_logits, lesion_logits)


def fresh_judge(config: JudgeConfig, seed: int, classes: Sequence[str] = BREAST.classes) -> Judge:
    """PyTorch's default initial weights, from a seed of their own."""
    check_judge_size(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Judge(config, classes)


def check_judge_size(config: JudgeConfig) -> None:
    """Refuse an image size that the network cannot halve often enough."""
    if config.size < 1 or config.size % config.size_multiple != 0:
        raise ValueError(f"image size {config.size}: a judge needs a multiple of {config.size_multiple} pixels.")


@torch.no_grad()
def judge(network: Judge, images: Tensor, batch: int = 32) -> Verdict:
    """(n, 1, H, W) in [0, 1] -> a class name and a mask for each, at the size of the images.

    The network looks at them at the size that it was trained at.
    """
    side = (network.config.size, network.config.size)
    labels, masks = [], []
    for chunk in images.split(batch):
        at_size = chunk.shape[-2:] == side
        seen = chunk if at_size else F.interpolate(chunk, side, mode="bilinear", antialias=True).clamp(0, 1)
        output = network(seen.to(network.stem.weight.device))
        logits = output.lesion_logits.to(chunk.device)
        if not at_size:
            logits = F.interpolate(logits, chunk.shape[-2:], mode="bilinear", antialias=True)
        labels += [network.classes[i] for i in output.class_logits.argmax(dim=1).tolist()]
        masks.append((logits > 0).float())
    return Verdict(labels, torch.cat(masks))
