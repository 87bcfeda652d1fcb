"""Open pictures and masks, and refuse in one sentence what is none, or shows what nobody can be sure of."""

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm_us.data.framing import Size, as_frame, placed
from ldm_us.data.medical import is_medical, open_medical
from ldm_us.data.structure import MaskFile, Structure, file_of

# What Pillow raises on bad files.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, struct.error, zlib.error)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")  # become grey without a guess
ONE_SHOWN = ("MPO", "PSD")  # formats whose further pictures are previews or layers, which no viewer shows
IMAGE_SUFFIXES = (  # in small letters; other files are taken where they are named themselves, but not in folders
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
HIDDEN = 8  # grey levels by which transparency may change an image over black


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
    if isinstance(mask, Structure) and not mask.whole:
        return mask.drawn(decode(path) if mask.levels else None)
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


def fitted(picture: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    """A picture brought into a size; bars are black."""
    frame = as_frame(size)
    part, (left, top, right, bottom) = placed(frame, *picture.size)
    resized = picture.resize((right - left, bottom - top), resample, part)
    if resized.size == (frame.width, frame.height):
        return resized
    canvas = Image.new(picture.mode, (frame.width, frame.height))
    canvas.paste(resized, (left, top))
    return canvas
