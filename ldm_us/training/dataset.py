"""The training images in memory: pixels, masks and prompts, and for the diffusion stages the latents."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_us.data.decoded import TOGETHER, Decoded, Pictures, check_pairs
from ldm_us.data.framing import Frame, Framing
from ldm_us.data.mixing import check_weights, class_shares, group_shares
from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import Record, load_pair, to_uint8
from ldm_us.data.split import SPLIT_SEED, split_by_group
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.lineage import pack, unpack
from ldm_us.training.cache import moments_key

OTHER_SPLIT = "or the split is another: near-duplicates and patients are found now that were not before"


@dataclass
class TrainingSet:
    """The images of a run. What is large is mapped from files that all processes share, where there is a cache.

    Images, masks and moments of one size alone can be asked for at once: see `of_each_size`.
    """

    records: list[Record]
    pixels: Pictures | Tensor | None  # (n, 1, H, W) uint8, grey; None where only latents are needed
    masks: Pictures | Tensor  # (n, 1, H, W) bool, or uint8 where a pixel is more than in or out: see union_of_masks
    prompts: list[str]  # the distinct ones; the first is "", for caption dropout
    prompt_index: Tensor  # (n,) int64 into prompts
    moments: dict[int, Tensor] = field(default_factory=dict)  # (2, 2c, h, w): of an image and its mirror image
    weights: tuple[float, ...] | None = None  # shares of the folders, or of their classes; None: all images alike
    folder_index: Tensor | None = None  # (n,) int64: which of these each image is of, where there are weights
    keys: list[str] = field(default_factory=list)  # of the moments of each image in the cache
    images: set[bytes] = field(default_factory=set)  # digests of the images, as a lineage keeps them
    frames: Sequence[Frame] = ()  # the size of each image; without them all are of one

    def __len__(self) -> int:
        return len(self.records)

    def frame(self, i: int) -> Frame:
        """Height and width of an image, and how it got there."""
        return self.frames[i] if self.frames else Frame(*self.masks[:1].shape[-2:])

    @cached_property
    def members(self) -> dict[Frame, Tensor]:
        """The images of each size (n,) int64, the size of most images first; a Frame here has no fit."""
        if not self.frames:
            return {} if len(self) == 0 else {self.frame(0): torch.arange(len(self))}
        found: dict[Frame, list[int]] = {}
        for i, frame in enumerate(self.frames):
            found.setdefault(Frame(*frame.size), []).append(i)
        ordered = sorted(found, key=lambda frame: (-len(found[frame]), frame))
        return {frame: torch.tensor(found[frame]) for frame in ordered}

    def of_each_size(self) -> "list[TrainingSet]":
        """The images of each size, the size of most images first; itself where all are of one."""
        return [self] if len(self.members) == 1 else [self.chosen(index) for index in self.members.values()]

    def chosen(self, index: Tensor) -> "TrainingSet":
        """Some of the images, (n,) int64, out of the same tables; their folders are not weighed."""
        places = index.tolist()

        def some(values: Pictures | Tensor) -> Pictures | Tensor:
            return values.of(index) if isinstance(values, Pictures) else values[index]

        return TrainingSet(
            [self.records[i] for i in places],
            None if self.pixels is None else some(self.pixels),
            some(self.masks),
            self.prompts,
            self.prompt_index[index],
            {new: self.moments[old] for new, old in enumerate(places) if old in self.moments},
            keys=[self.keys[i] for i in places] if self.keys else [],
            frames=[self.frame(i) for i in places],
        )

    def sizes(self) -> dict[str, int]:
        """How many images have each size, as WIDTHxHEIGHT."""
        return {str(frame): len(index) for frame, index in self.members.items()}

    def drawn(self) -> Tensor:
        """Which images have a lesion in their masks: (n,) bool."""
        return self.masks.any() if isinstance(self.masks, Pictures) else self.masks.flatten(1).any(dim=1)

    def decoded_sha256(self, masks: bool) -> str:
        """SHA-256 of the pixels that the networks see, in order, and of the masks where they see these."""
        digest = hashlib.sha256(json.dumps(self.keys).encode())
        together = TOGETHER if len(self.members) == 1 else 1
        for start in range(0, len(self) if masks else 0, together):
            digest.update(self.masks[start : start + together].contiguous().numpy().data)
        return digest.hexdigest()


def split_data(folders: Sequence[Path], held_out: float) -> tuple[list[Record], list[Record]]:
    """Records to train on and records to evaluate on, whole near-duplicate families on one side.

    Families are also found among the images of all folders: it opens each, and takes a few seconds for 600.
    """
    return split_records(read_datasets(folders), held_out)


def split_records(
    records: Sequence[Record], held_out: float, decoded: Decoded | None = None, device: str = "cpu"
) -> tuple[list[Record], list[Record]]:
    """Split records that are read already as split_data does; a GPU finds near-duplicates faster, and the same."""
    return split_by_group(merge_families(records, decoded, device), held_out, SPLIT_SEED)


def load_training_set(records: list[Record], sizes: int | Framing | Decoded, with_pixels: bool = True) -> TrainingSet:
    """Have every record in its size of a Framing, or squashed to a side; of the pixels only a key where the latents
    come from a cache, as a Decoded says itself.
    """
    decoded = sizes if isinstance(sizes, Decoded) else Decoded(None, sizes, with_pixels)
    check_pairs(records, decoded)
    (images, of_image), (masks, of_masks) = decoded.image_facts(records), decoded.mask_facts(records)
    frames = decoded.frames(images["shape"][of_image])
    pixels = Pictures(images["pixels"], of_image, frames, bits=False) if decoded.with_pixels else None
    keys = [moments_key(key.tobytes(), frame) for key, frame in zip(images["key"][of_image], frames, strict=True)]
    prompts = ["", *sorted({record.prompt for record in records})]
    place = {prompt: i for i, prompt in enumerate(prompts)}
    return TrainingSet(
        records,
        pixels,
        Pictures(masks["bits"], of_masks, frames, bits=not decoded.levels),
        prompts,
        torch.tensor([place[record.prompt] for record in records]),
        keys=keys,
        images={digest.tobytes() for digest in images["digest"][of_image]},
        frames=frames,
    )


def mix_folders(
    data: TrainingSet,
    folders: Sequence[Path],
    weights: tuple[float, ...] | None,
    classes: tuple[str, ...] | None = None,
) -> None:
    """Let batches be drawn from the folders, and from the classes of each, in these shares, in place.

    None leaves every image equally likely.
    """
    if weights is None and classes is None:
        return
    index = [0] * len(data)
    if weights is not None:
        index = [next(i for i, folder in enumerate(folders) if r.image.is_relative_to(folder)) for r in data.records]
        check_weights([index.count(i) for i in range(len(folders))], weights)
    if classes is not None:
        labels = [record.label for record in data.records]
        weights, index = group_shares(index, labels, weights or (1.0,), class_shares(classes, labels))
    data.weights, data.folder_index = weights, torch.tensor(index)


@torch.no_grad()
def image_moments(model: LatentDiffusion, data: TrainingSet, i: int) -> Tensor:
    """The moments of an image and of its mirror image: (2, 2c, h, w).

    Each is encoded alone: in a batch the last bits would depend on its neighbours.
    """
    if data.pixels is None:
        x, _ = load_pair(data.records[i], data.frame(i))  # the mask is checked too
        pixels = to_uint8(x[None, :1])
    else:
        pixels = data.pixels[i : i + 1]
    x = to_signed(pixels).to(model.device)
    return torch.stack([model.vae.moments(image).float().cpu()[0] for image in (x, x.flip(-1))])


def to_signed(pixels: Tensor) -> Tensor:
    """(b, 1, H, W) uint8 -> (b, 3, H, W) in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1)


def data_hashes(
    records: Sequence[Record], folder_index: Tensor | None = None, decoded: Decoded | None = None
) -> dict[str, str]:
    """SHA-256 of what a run is trained on, under their names in config.json.

    Of the bytes of every image and mask, whatever their names and order; of all that a run sees, over the records in
    order: pixels, which masks are whose, prompts, labels; and of the folder of each record, where folders are weighed.
    """
    digest = hashlib.sha256()
    of_each = [[record.image, *record.masks] for record in records]
    hashes = (decoded or Decoded(None, 1)).file_hashes([path for paths in of_each for path in paths])
    left = iter(hashes)
    for record, paths in zip(records, of_each, strict=True):
        files = [next(left) for _ in paths]
        digest.update(json.dumps([files, record.prompt, record.label]).encode())
    of_files = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    hashes_of = {"data_sha256": of_files, "records_sha256": digest.hexdigest()}
    if folder_index is not None:
        hashes_of["folders_sha256"] = hashlib.sha256(json.dumps(folder_index.tolist()).encode()).hexdigest()
    return hashes_of


def data_hash(records: Sequence[Record]) -> str:
    """The first of data_hashes: what a run and a model say of the images they were trained on."""
    return data_hashes(records)["data_sha256"]


def run_hashes(data: TrainingSet, decoded: Decoded, with_masks: bool) -> dict[str, str]:
    """What config.json says of the data of a run: the hashes above, the images, and what the networks see of them."""
    seen = {"images": pack(data.images), "decoded_sha256": data.decoded_sha256(with_masks)}
    return data_hashes(data.records, data.folder_index, decoded) | seen


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is different about the training data of two config.json, in words."""
    if "images" not in before:
        return f"its training images or masks were others ({OTHER_SPLIT})"
    old, new = unpack(before["images"]), unpack(now["images"])
    if old == new:
        return "its training images are the same, but not all masks, prompts, classes, or their order"
    return f"of its {len(old)} training images {len(old - new)} are gone or changed, and {len(new - old)} are new"


def changed_decoding(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A note where the files of a run may decode otherwise than at its start: the hashes of files do not tell that."""
    if before.get("decoded_sha256") == now["decoded_sha256"]:
        return []
    if "decoded_sha256" not in before:
        return [
            "the run was begun by an older version, which did not turn images by EXIF, read some masks with alpha or "
            "several levels otherwise, and lost lesions smaller than a pixel: such images and masks of --data are read "
            "by the new rules from here on."
        ]
    return [
        "the files of --data are the same, but decode to other pixels or masks than when the run was begun, by another "
        "version of ldm_us or Pillow: it goes on with the new ones."
    ]
