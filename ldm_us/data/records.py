"""One record of the data, and how its files become tensors: image in [-1, 1], hint in {0, 1}."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm_us.config import PICTURE, ModelConfig
from ldm_us.data.framing import Frame, Framing, Size, as_frame
from ldm_us.data.mask_rule import drawn_lesion
from ldm_us.data.medical import Spacing
from ldm_us.data.opening import fitted, open_image, open_mask
from ldm_us.data.organ import BREAST, Organ
from ldm_us.data.regions import label_regions, lost_regions, resize_mask, share_cut_off
from ldm_us.data.structure import MaskFile, Structure, file_of, in_channels, labelled, sums_of
from ldm_us.files.lineage import read_lineage

DISAGREE = 2.0  # times, of the mm of a pixel within a set
BUSI_GROUP, PHANTOM_GROUP, SAMPLES_GROUP = "busi:", "phantom ", "samples "  # start the names of their families


@dataclass(frozen=True, order=True)
class Record:
    """One image with what is known about it."""

    image: Path
    masks: tuple[MaskFile, ...]  # OR-ed together; empty: the image has no mask file
    label: str  # of the organ's classes, or UNKNOWN
    prompt: str
    group: str  # dataset and near-duplicate family, patient or case: never on both sides of a split
    organ: Organ = field(default=BREAST, compare=False)
    structures: tuple[str, ...] = field(default=(), compare=False)  # what each mask shows; empty: nobody named it
    spacing: Spacing | None = field(default=None, compare=False)  # mm of a pixel of the file: down, across

    @property
    def shows(self) -> bool | None:
        """Whether the image shows a structure, by its class; None where nobody said."""
        return self.organ.shows(self.label)


def union_of_masks(paths: Sequence[MaskFile]) -> Image.Image | None:
    """OR the masks at their own size; None when there are no paths. mask_rule.py says what counts.

    Mode L, 0 or 255; of masks in channels P, the sum of 2^k over the structures of a pixel; of a picture I, its greys.
    """
    union, value = None, 255
    for path in paths:
        value = path.value if isinstance(path, Structure) else 255
        picture = open_mask(path)
        drawn = drawn_lesion(picture, file_of(path)) * np.uint8(value) if value else np.asarray(picture.convert("L"))
        if union is not None and union.shape != drawn.shape:
            raise ValueError(
                f"{path} is {drawn.shape[1]}x{drawn.shape[0]}, but {paths[0]} is {union.shape[1]}x{union.shape[0]}. "
                "Give masks of one size."
            )
        union = drawn if union is None else union | drawn
    if union is None or value == 255:
        return None if union is None else Image.fromarray(union)
    return Image.fromarray(union).convert("I") if value == 0 else with_palette(union)


def with_palette(sums: NDArray[np.uint8]) -> Image.Image:
    """Sums of 2^k as a picture of mode P, in which programs show each in a colour of its own."""
    picture = Image.fromarray(sums)
    picture.putpalette([channel for s in range(256) for channel in (s * 97 % 256, s * 151 % 256, s * 211 % 256)])
    return picture


def image_tensor(picture: Image.Image, size: Size) -> Tensor:
    """Turn a decoded image into (3, H, W) in [-1, 1]."""
    grey = fitted(picture.convert("L"), size, Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(grey, dtype=np.float32)) / 127.5 - 1
    return repeat(x, "h w -> 3 h w").contiguous()


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, rounded."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def mask_tensor(union: Image.Image | None, size: Size, keep_small: bool = True) -> Tensor:
    """Turn what union_of_masks gives into (1, H, W): in {0, 1}, or sums of 2^k, or 0 to 255; zeros for None.

    Each pixel comes from the nearest one. keep_small: of a lesion smaller than a pixel one is left.
    """
    if union is None:
        return torch.zeros(1, *as_frame(size).size)
    if union.mode == "I":
        return torch.from_numpy(np.array(fitted(union, size, Image.Resampling.NEAREST), dtype=np.float32))[None]
    levels = np.asarray(union)
    bits = [1 << k for k in range(8) if union.mode == "P" and (levels >> k & 1).any()]
    if bits:
        resized = sum(bit * resize_mask(levels & bit > 0, size, keep_small).astype(np.float32) for bit in bits)
    else:
        resized = resize_mask(levels > 127, size, keep_small).astype(np.float32)
    return rearrange(torch.from_numpy(resized), "h w -> 1 h w")


def small_lesions(union: Image.Image, size: Size) -> int:
    """Count the lesions of which no pixel would be left at this size, if each were not kept as one."""
    return 0 if union.mode == "I" else len(lost_regions(label_regions(np.asarray(union) > 0), size))


def lesions_cut_off(union: Image.Image, size: Size) -> float:
    """The share of the lesions' pixels that a size does not show; 0 for a picture to follow, which has no lesions."""
    return 0.0 if union.mode == "I" else share_cut_off(np.asarray(union) > 0, size)


def trained_framing(metadata: dict[str, str], config: ModelConfig) -> Framing:
    """How the images of the last stage of a model file came into their sizes."""
    lineage = read_lineage(metadata)
    framing = Framing(config.image_size, lineage.aspect, config.size_multiple)
    frames = {str(frame): frame for frame in (Frame(*size) for size in framing.sizes)}
    return framing._replace(usual=frames.get(lineage.usual_size or ""))


def framed(path: Path, framing: Framing) -> Frame:
    """The size that an image file has by a Framing."""
    return framing.frame(*open_image(path).size)


def load_image(path: Path, size: Size) -> Tensor:
    """Load a grey image as (3, H, W) float32 in [-1, 1]. Coloured marks become grey.

    The WHOLE image is resized unless a Frame says otherwise, so that no lesion is cut off.
    """
    as_frame(size)  # refuses a size before a file is opened
    return image_tensor(open_image(path), size)


def load_mask(paths: Sequence[MaskFile], size: Size) -> Tensor:
    """Load masks OR-ed together as (1, H, W) float32 in {0, 1}; all zeros when there are no paths."""
    as_frame(size)
    return mask_tensor(union_of_masks(paths), size)


def shown_mask(mask: Tensor, hint: tuple[str, ...]) -> Tensor:
    """A mask (1, H, W) as people see it, in [0, 1]: of several structures the last white, those before in greys."""
    if len(hint) == 1:
        return mask / 255 if hint == PICTURE else mask
    n = len(hint)
    return torch.stack([(mask.long() >> k & 1) * (k + 1) / n for k in range(n)]).amax(dim=0)


def mask_file(mask: Tensor, hint: tuple[str, ...]) -> Image.Image:
    """A mask (1, H, W) as a file that is read as the same: white on black, the labels of sums_of, or greys."""
    values = mask[0].cpu().numpy().astype(np.uint8)
    if len(hint) == 1:
        return Image.fromarray(values if hint == PICTURE else values * 255)
    labels = np.zeros(256, np.uint8)
    sums = sums_of(len(hint))
    labels[sums] = np.arange(1, len(sums) + 1)
    return with_palette(labels[values])


def structured(record: Record) -> Record:
    """With a mask for each structure, where a description says which label of its files is which."""
    organ, own = record.organ, record.masks
    if organ.hint_is_picture:
        return replace(record, masks=in_channels(own, (), organ.hint))
    if not organ.levels or not all(isinstance(mask, Path) for mask in own):
        return record
    levels = dict(zip(organ.structures, organ.levels, strict=True))
    masks = tuple(one for mask in own for one in labelled(file_of(mask), organ.structures, levels))
    return replace(record, masks=masks, structures=organ.structures * len(own))


def of_structure(records: Sequence[Record], name: str | None) -> list[Record]:
    """With the masks of one structure alone; None: of all, joined. For what is measured against masks.

    Raise ValueError where no record has such masks, and where pictures stand for them, which show no structure.
    """
    if any(record.organ.hint_is_picture and record.masks for record in records):
        raise ValueError("what stands for masks are pictures to follow: nothing is measured against them. Give masks.")
    known = sorted({one for record in records for one in record.structures})
    if name is not None and name not in known:
        raise ValueError(f"--structure {name}: the masks show {', '.join(known) or 'one structure without a name'}.")
    return list(records) if name is None else [only(record, name) for record in records]


def only(record: Record, name: str) -> Record:
    """With the masks of this structure alone."""
    if len(record.masks) != len(record.structures):
        raise ValueError(f"--structure {name}: nothing says what the masks of {record.image} show. Name it.")
    masks = tuple(mask for mask, shown in zip(record.masks, record.structures, strict=True) if shown == name)
    return replace(record, masks=masks, structures=(name,) * len(masks))


def followed(record: Record, hint: tuple[str, ...]) -> Record:
    """With its masks as a ControlNet with this hint follows them. ValueError: a structure that has no channel."""
    return replace(record, masks=in_channels(record.masks, record.structures, hint))


def load_pair(record: Record, size: Size, flip: bool = False) -> tuple[Tensor, Tensor]:
    """Load image (3, H, W) in [-1, 1] and hint (1, H, W) in {0, 1}; flip mirrors both left to right."""
    as_frame(size)
    picture, union = open_pair(record)
    x, hint = image_tensor(picture, size), mask_tensor(union, size)
    return (x.flip(-1), hint.flip(-1)) if flip else (x, hint)


def load_framed(record: Record, framing: int | Framing) -> tuple[Tensor, Tensor]:
    """Load image and hint as load_pair does, in the size of a Framing."""
    return load_pair(record, framing if isinstance(framing, int) else framed(record.image, framing))


def open_pair(record: Record) -> tuple[Image.Image, Image.Image | None]:
    """Open an image, and OR its masks, which must be of its size; None where it has none."""
    picture = open_image(record.image)
    union = union_of_masks(record.masks)
    if union is not None and union.size != picture.size:
        raise ValueError(
            f"{record.masks[0]} is {union.width}x{union.height}, but its image {record.image} is "
            f"{picture.width}x{picture.height}. Replace the mask by one drawn on this image."
        )
    return picture, union


def spacing_notes(records: Sequence[Record]) -> list[str]:
    """A sentence where the pixels of a set differ so much that its images, resized alike, show another scale."""
    for axis, way in enumerate(("down", "across")):
        known = sorted((record.spacing[axis], record.image.name) for record in records if record.spacing is not None)
        if known and known[-1][0] > DISAGREE * known[0][0]:
            (least, small), (most, large) = known[0], known[-1]
            told = f"a pixel is {least:.3g} mm {way} in {small} and {most:.3g} mm in {large}"
            return [f"{told}: grain and sizes in pixels do not compare"]
    return []
