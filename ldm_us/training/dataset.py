"""The training images in memory: pixels, masks and prompts, and for the diffusion stages the latents."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ldm_us.data.datasets import read_dataset
from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.records import Record, load_pair
from ldm_us.data.split import SPLIT_SEED, split_by_group
from ldm_us.model import LatentDiffusion


@dataclass
class TrainingSet:
    """All images of a run. A 512x512 image takes 0.5 MB with its mask, and its latents 0.26 MB more."""

    records: list[Record]
    pixels: Tensor  # (n, 1, H, W) uint8, grey
    masks: Tensor  # (n, 1, H, W) bool
    prompts: list[str]  # the distinct ones; the first is "", for caption dropout
    prompt_index: Tensor  # (n,) int64 into prompts
    moments: Tensor | None = None  # (n, 2, 2c, h, w): of each image and its mirror image, where encoded
    encoded: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.records)


def read_data(folders: Sequence[Path]) -> list[Record]:
    """Read every folder's records."""
    return [record for folder in folders for record in read_dataset(folder)]


def split_data(folders: Sequence[Path], held_out: float) -> tuple[list[Record], list[Record]]:
    """Records to train on and records to evaluate on, whole near-duplicate families on one side.

    Families are also found among the images of all folders: it opens each, and takes a few seconds for 600.
    """
    train, evaluate = split_by_group(merge_families(read_data(folders)), held_out, SPLIT_SEED)
    return train, evaluate


def load_training_set(records: list[Record], size: int) -> TrainingSet:
    """Decode every record at `size` pixels."""
    pixels = torch.empty(len(records), 1, size, size, dtype=torch.uint8)
    masks = torch.empty(len(records), 1, size, size, dtype=torch.bool)
    for i, record in enumerate(records):
        x, hint = load_pair(record, size)
        pixels[i], masks[i] = to_uint8(x[:1]), hint > 0.5
    prompts = ["", *sorted({record.prompt for record in records})]
    prompt_index = torch.tensor([prompts.index(record.prompt) for record in records])
    return TrainingSet(records, pixels, masks, prompts, prompt_index)


@torch.no_grad()
def encode_images(model: LatentDiffusion, data: TrainingSet, index: Tensor) -> None:
    """Compute the moments of images (b,) and of their mirror images, unless that was done before.

    The frozen VAE always gives the same, so each is computed once, when it is first needed, and alone: in a batch the
    last bits would depend on its neighbours.
    """
    for i in set(index.tolist()) - data.encoded:
        x = to_signed(data.pixels[i : i + 1]).to(model.device)
        moments = [model.vae.moments(image).float().cpu()[0] for image in (x, x.flip(-1))]
        if data.moments is None:
            data.moments = torch.empty(len(data), 2, *moments[0].shape)
        data.moments[i] = torch.stack(moments)
        data.encoded.add(i)


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, rounded."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_signed(pixels: Tensor) -> Tensor:
    """(b, 1, H, W) uint8 -> (b, 3, H, W) in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1)


def data_hash(records: Sequence[Record]) -> str:
    """SHA-256 over the bytes of every image and mask, whatever their names and order."""
    files = sorted(
        hashlib.sha256(path.read_bytes()).hexdigest() for record in records for path in (record.image, *record.masks)
    )
    return hashlib.sha256("\n".join(files).encode()).hexdigest()
