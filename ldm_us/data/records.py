"""One record of the data, and how its files become tensors: image in [-1, 1], hint in {0, 1}."""

import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageOps
from torch import Tensor

from ldm_us.config import ModelConfig
from ldm_us.data.framing import Frame, Framing, Size, as_frame, fitted
from ldm_us.data.mask_rule import drawn_lesion
from ldm_us.data.medical import Spacing, is_medical, open_medical
from ldm_us.data.organ import BREAST, Organ
from ldm_us.data.regions import label_regions, lost_regions, resize_mask
from ldm_us.data.structure import MaskFile, Structure, file_of
from ldm_us.files.lineage import read_lineage

# What Pillow raises on bad files.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, struct.error, zlib.error)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")  # become grey without a guess
ONE_SHOWN = ("MPO", "PSD")  # formats whose further pictures are previews or layers, which no viewer shows
IMAGE_SUFFIXES = (  # in small letters; other files are taken where they are named themselves, but not in folders
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
HIDDEN = 8  # grey levels by which transparency may change an image over black
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


def open_image(path: Path) -> Image.Image:
    """Open and decode an 8-bit image file in its own mode, turned as a viewer shows it.

    A transparent part that is not black would show in the colour of any page, so an image with one is refused.
    """
    picture = eight_bits(decode(path), path)
    if picture.has_transparency_data:
        rgba = np.asarray(picture.convert("RGBA")).astype(int)
        colours, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
        if alpha.min() < alpha.max() and (colours * (255 - alpha)).max() > HIDDEN * 255:
            raise ValueError(f"{path} is partly transparent, so what it shows is not known. Save it without alpha.")
    return picture


def open_mask(mask: MaskFile) -> Image.Image:
    """Open and decode a file as open_image does, whatever its transparency, or draw what is no file of its own.

    Whole numbers of 16 or 32 bits are taken as they are where all fit into 8, and of two levels the higher is white.
    """
    path = file_of(mask)
    if isinstance(mask, Structure):
        return mask.drawn(decode(path) if mask.level else None)
    picture = decode(path)
    if picture.mode[0] == "I" and not picture.has_transparency_data:
        levels = np.asarray(picture)
        if levels.min() >= 0 and levels.max() <= 255:
            picture = Image.fromarray(levels.astype(np.uint8))
        elif levels.max() > 255 and len(np.unique(levels)) <= 2:
            picture = Image.fromarray((levels == levels.max()).astype(np.uint8) * 255)
    return eight_bits(picture, path)


def eight_bits(picture: Image.Image, path: Path) -> Image.Image:
    """Refuse a picture of another mode. Pillow clips more than 8 bits at 255 instead of scaling them."""
    if picture.mode not in MODES:
        problem = "more than 8 bits a pixel" if picture.mode[0] in "IF" else "whose colours are not read"
        raise ValueError(f"{path} has mode {picture.mode}, {problem}. Save it as 8-bit grey or RGB.")
    return picture


def decode(path: Path) -> Image.Image:
    """Open and decode a file of one picture, in any mode, turned as a viewer shows it."""
    path = Path(path)
    if is_medical(path) and path.is_file():
        return open_medical(path)
    try:
        with path.open("rb") as file, Image.open(file) as picture:  # by its name, Pillow garbles a turned raw TIFF
            frames = 1 if picture.format in ONE_SHOWN else getattr(picture, "n_frames", 1)
            picture.load()
            with suppress(*UNREADABLE):  # an EXIF block that no program can read says nothing
                ImageOps.exif_transpose(picture, in_place=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} does not exist. Check the path.") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, not an image. Give an image file.") from error
    except PermissionError as error:
        raise ValueError(f"{path} may not be read: permission denied. Change its permissions.") from error
    except Image.UnidentifiedImageError as error:
        problem = "is an empty file" if path.stat().st_size == 0 else "is not an image that Pillow can read"
        raise ValueError(f"{path} {problem}. Replace or remove it.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to decode safely ({error}). Make it smaller.") from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged and does not decode ({error}). Copy it again from its source.") from error
    if min(picture.size) == 0:
        raise ValueError(f"{path} has size {picture.width}x{picture.height}: no pixels. Replace or remove it.")
    if frames > 1:
        raise ValueError(f"{path} holds {frames} pages or frames, not one picture. Save each as a file of its own.")
    return picture


def union_of_masks(paths: Sequence[MaskFile]) -> Image.Image | None:
    """OR the masks at their own size: mode L, 0 or 255; None when there are no paths. mask_rule.py says what counts."""
    union = None
    for path in paths:
        lesion = drawn_lesion(open_mask(path), file_of(path))
        if union is not None and union.shape != lesion.shape:
            raise ValueError(
                f"{path} is {lesion.shape[1]}x{lesion.shape[0]}, but {paths[0]} is {union.shape[1]}x{union.shape[0]}. "
                "Give masks of one size."
            )
        union = lesion if union is None else union | lesion
    return None if union is None else Image.fromarray(union.astype(np.uint8) * 255)


def image_tensor(picture: Image.Image, size: Size) -> Tensor:
    """Turn a decoded image into (3, H, W) in [-1, 1]."""
    grey = fitted(picture.convert("L"), size, Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(grey, dtype=np.float32)) / 127.5 - 1
    return repeat(x, "h w -> 3 h w").contiguous()


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, rounded."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def mask_tensor(union: Image.Image | None, size: Size, keep_small: bool = True) -> Tensor:
    """Turn a mask of 0 and 255 into (1, H, W) in {0, 1}; zeros for None. Keep lesions smaller than a pixel?"""
    if union is None:
        return torch.zeros(1, *as_frame(size).size)
    resized = resize_mask(np.asarray(union) > 127, size, keep_small)
    return rearrange(torch.from_numpy(resized).float(), "h w -> 1 h w")


def small_lesions(union: Image.Image, size: Size) -> int:
    """Count the lesions of which no pixel would be left at this size, if each were not kept as one."""
    return len(lost_regions(label_regions(np.asarray(union) > 127), size))


def trained_framing(metadata: dict[str, str], config: ModelConfig) -> Framing:
    """How the images of the last stage of a model file came into their sizes."""
    return Framing(config.image_size, read_lineage(metadata).aspect, config.size_multiple)


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
