"""The training images in memory: pixels, masks and prompts, and for the diffusion stages the latents."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_us.data.audit.summary import format_names, named, showing_lesions
from ldm_us.data.digests import lineage_digest
from ldm_us.data.mixing import check_weights
from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.readers.left_out import more_than_a_few
from ldm_us.data.records import Record, image_tensor, load_pair, mask_tensor, open_pair
from ldm_us.data.split import SPLIT_SEED, split_by_group
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.files.lineage import unpack
from ldm_us.training.cache import Cache, moments_key

OTHER_SPLIT = "or the split is another: near-duplicates and patients are found now that were not before"


@dataclass
class TrainingSet:
    """The images of a run. At 512x512 a mask takes 0.26 MB, and so do the moments of an image and its mirror image."""

    records: list[Record]
    pixels: Tensor | None  # (n, 1, H, W) uint8, grey; None where only latents are needed
    masks: Tensor  # (n, 1, H, W) bool
    prompts: list[str]  # the distinct ones; the first is "", for caption dropout
    prompt_index: Tensor  # (n,) int64 into prompts
    moments: dict[int, Tensor] = field(default_factory=dict)  # (2, 2c, h, w): of an image and its mirror image
    weights: tuple[float, ...] | None = None  # shares of the folders; None: every image as often as any other
    folder_index: Tensor | None = None  # (n,) int64: the folder of each image, where there are weights
    keys: list[str] = field(default_factory=list)  # of the moments of each image in the cache
    images: set[bytes] = field(default_factory=set)  # digests of the images, as a lineage keeps them

    def __len__(self) -> int:
        return len(self.records)

    @property
    def size(self) -> int:
        """Pixels along one side."""
        return self.masks.shape[-1]

    def decoded_sha256(self, masks: bool) -> str:
        """SHA-256 of the pixels that the networks see, in order, and of the masks where they see these."""
        digest = hashlib.sha256(json.dumps(self.keys).encode())
        if masks:
            digest.update(self.masks.numpy().data)
        return digest.hexdigest()


def split_data(folders: Sequence[Path], held_out: float) -> tuple[list[Record], list[Record]]:
    """Records to train on and records to evaluate on, whole near-duplicate families on one side.

    Families are also found among the images of all folders: it opens each, and takes a few seconds for 600.
    """
    return split_records(read_datasets(folders), held_out)


def split_records(records: Sequence[Record], held_out: float) -> tuple[list[Record], list[Record]]:
    """Split records that are read already as split_data does."""
    return split_by_group(merge_families(records), held_out, SPLIT_SEED)


def load_training_set(records: list[Record], size: int, with_pixels: bool = True) -> TrainingSet:
    """Decode every record at `size` pixels; keep of the pixels only a key where the latents come from a cache."""
    pixels = torch.empty(len(records), 1, size, size, dtype=torch.uint8) if with_pixels else None
    masks, keys, images = torch.empty(len(records), 1, size, size, dtype=torch.bool), [], set()
    for i, record in enumerate(records):
        picture, union = open_pair(record)
        masks[i] = mask_tensor(union, size) > 0.5
        grey = to_uint8(image_tensor(picture, size)[:1])
        keys.append(moments_key(grey))
        images.add(lineage_digest(picture))
        if pixels is not None:
            pixels[i] = grey
    prompts = ["", *sorted({record.prompt for record in records})]
    prompt_index = torch.tensor([prompts.index(record.prompt) for record in records])
    return TrainingSet(records, pixels, masks, prompts, prompt_index, keys=keys, images=images)


def mix_folders(data: TrainingSet, folders: Sequence[Path], weights: tuple[float, ...] | None) -> None:
    """Let batches be drawn from the folders in these shares, in place; None leaves every image equally likely."""
    if weights is None:
        return
    index = [next(i for i, folder in enumerate(folders) if r.image.is_relative_to(folder)) for r in data.records]
    check_weights([index.count(i) for i in range(len(folders))], weights)
    data.weights, data.folder_index = weights, torch.tensor(index)


def check_hints(data: TrainingSet) -> list[str]:
    """Note the lesion images without a drawn lesion: a ControlNet learns from them that an empty mask has one.

    ValueError: more than a few are so, or all images.
    """
    drawn = data.masks.flatten(1).any(dim=1).tolist()
    if not any(drawn):
        raise ValueError(
            f"--data: the masks of all {len(data)} training images are empty, so a ControlNet has nothing to learn "
            "from. Give images with drawn lesions."
        )
    shown = showing_lesions(record for record, has_lesion in zip(data.records, drawn, strict=True) if has_lesion)
    lesions = [i for i, record in enumerate(data.records) if record.label in shown]
    empty = [data.records[i].image.name for i in lesions if not drawn[i]]
    if not empty:
        return []
    found = f"of {len(lesions)} {named(shown)}, these have no lesion in their masks or no mask: {format_names(empty)}"
    if more_than_a_few(len(empty), len(lesions)):
        raise ValueError(
            f"--data: {found}. A ControlNet would learn to put a lesion where the mask has none. Draw their lesions, "
            "give them the class normal, or remove them."
        )
    return [f"{found}."]


def missing_moments(data: TrainingSet, index: Iterable[int], cache: Cache) -> list[int]:
    """Take what the cache has of the images `index` into data.moments; return those that it lacks."""
    for i in sorted(set(index) - data.moments.keys()):
        moments = cache.read(data.keys[i])
        if moments is not None:
            data.moments[i] = moments.clone()  # else it would keep the file open
    return sorted(set(index) - data.moments.keys())


@torch.no_grad()
def encode_images(model: LatentDiffusion, data: TrainingSet, index: Iterable[int], cache: Cache | None = None) -> None:
    """Compute the moments of images and of their mirror images, and keep them in the cache too.

    Each is encoded alone: in a batch the last bits would depend on its neighbours.
    """
    for i in sorted(set(index) - data.moments.keys()):
        if data.pixels is None:
            x, _ = load_pair(data.records[i], data.size)  # the mask is checked too
            pixels = to_uint8(x[None, :1])
        else:
            pixels = data.pixels[i : i + 1]
        x = to_signed(pixels).to(model.device)
        data.moments[i] = torch.stack([model.vae.moments(image).float().cpu()[0] for image in (x, x.flip(-1))])
        if cache is not None:
            cache.write(data.keys[i], data.moments[i])


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, rounded."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_signed(pixels: Tensor) -> Tensor:
    """(b, 1, H, W) uint8 -> (b, 3, H, W) in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1)


def data_hashes(records: Sequence[Record], folder_index: Tensor | None = None) -> dict[str, str]:
    """SHA-256 of what a run is trained on, under their names in config.json.

    Of the bytes of every image and mask, whatever their names and order; of all that a run sees, over the records in
    order: pixels, which masks are whose, prompts, labels; and of the folder of each record, where folders are weighed.
    """
    digest = hashlib.sha256()
    hashes: list[str] = []
    for record in records:
        files = [sha256_file(path) for path in (record.image, *record.masks)]
        digest.update(json.dumps([files, record.prompt, record.label]).encode())
        hashes += files
    of_files = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    hashes_of = {"data_sha256": of_files, "records_sha256": digest.hexdigest()}
    if folder_index is not None:
        hashes_of["folders_sha256"] = hashlib.sha256(json.dumps(folder_index.tolist()).encode()).hexdigest()
    return hashes_of


def data_hash(records: Sequence[Record]) -> str:
    """The first of data_hashes: what a run and a model say of the images they were trained on."""
    return data_hashes(records)["data_sha256"]


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
