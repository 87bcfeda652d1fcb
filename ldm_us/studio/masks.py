"""What comes from the page as a picture: masks that were drawn, files that were opened; and what is shown of a mask."""

import base64
import binascii
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.records import IMAGE_SUFFIXES, image_tensor, mask_tensor, open_image, small_lesions, union_of_masks
from ldm_us.data.regions import Mask, label_regions
from ldm_us.files.pictures import to_picture

MOST_BYTES = 16 << 20  # of a file
MOST_PIXELS = 32_000_000  # of a picture
Size = tuple[int, int]  # width and height


class Opened(NamedTuple):
    """A picture of the size of the samples, and what there is to say about it."""

    picture: Image.Image  # mode L
    notes: list[str]


def unpack(url: object) -> bytes:
    """The bytes of a data: URL. Raise ValueError for anything else, and for too many of them."""
    head, comma, text = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError("There is no picture in what the page sent. Draw or open one.")
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise ValueError(f"The file is larger than {MOST_BYTES >> 20} MB. Make it smaller.")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("The file arrived damaged. Open it again.") from error


def data_url(picture: Image.Image | bytes, kind: str = "image/png") -> str:
    """A picture, or the bytes of a file, as a text that a page shows."""
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        picture = file.getvalue()
    return f"data:{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def drawn_mask(url: object, size: Size) -> Mask:
    """The mask that was drawn on the canvas, (h, w)."""
    try:
        with Image.open(io.BytesIO(unpack(url)), formats=["PNG"]) as picture:
            if picture.size == size:
                return np.asarray(picture.convert("L")) > 127
    except (OSError, SyntaxError) as error:
        raise ValueError("The drawing arrived damaged. Draw it anew.") from error
    raise ValueError(f"The drawing is {picture.width}x{picture.height} and not {size[0]}x{size[1]}. Draw it anew.")


def mask_picture(mask: Mask) -> Image.Image:
    """White on black, 8-bit grey."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def open_file(name: str, url: object, size: Size, mask: bool) -> Opened:
    """Open a file as the readers of datasets do, and resize it as they do. Raise ValueError, in one sentence."""
    content, suffix = unpack(url), Path(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"{name} is no image by its name. Give a file such as .png, .jpg or .tif.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(content)
        try:
            check_pixels(path)
            return opened_mask(path, name, size) if mask else opened_image(path, name, size)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error


def check_pixels(path: Path) -> None:
    """Refuse a picture of too many pixels by its header, before they are decoded; other faults are the readers'."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return
    if width * height > MOST_PIXELS:
        raise ValueError(f"{path} has {width}x{height} pixels, more than {MOST_PIXELS:,}. Make it smaller.")


def opened_image(path: Path, name: str, size: Size) -> Opened:
    """An image, grey, of the size of the samples."""
    picture = open_image(path)
    same = picture.size == size
    notes = [] if same else [f"{name} of {picture.width}x{picture.height} was resized to {size[0]}x{size[1]}."]
    return Opened(picture.convert("L") if same else to_picture(image_tensor(picture, size[0])[:1] / 2 + 0.5), notes)


def opened_mask(path: Path, name: str, size: Size) -> Opened:
    """A mask, after the rule of all masks, of the size of the samples."""
    union = union_of_masks([path])
    assert union is not None
    notes = []
    if union.size != size:
        notes.append(
            f"{name} of {union.width}x{union.height} was resized to {size[0]}x{size[1]}, the nearest pixel each."
        )
    if small_lesions(union, size[0]):
        notes.append(f"{name} has lesions smaller than a pixel: each is kept as one pixel.")
    if looks_inverted(union):
        notes.append(
            f"{name} is white in most of the picture and in all four corners: only white is lesion. Invert it?"
        )
    with Image.open(path) as picture:
        if picture.getexif().get(0x0112, 1) != 1:
            notes.append(f"{name} was turned, as its EXIF orientation asks.")
        if picture.has_transparency_data:
            notes.append(f"{name} has transparency: what is transparent is no lesion, unless all of it is alike.")
    return Opened(to_picture(mask_tensor(union, size[0])), notes)


def described(mask: Mask, label: str = "lesion") -> str:
    """Area and pieces, to stand beside the canvas."""
    pieces = int(label_regions(mask).max())
    if not pieces:
        return f"No {label} drawn yet."
    return f"{label.capitalize()}: {100 * mask.mean():.1f} % of the picture, {pieces} piece{'s' * (pieces > 1)}."


def outline(mask: Mask, grow: int = 4) -> Image.Image:
    """The edge of a mask as a line over a transparent picture, `grow` times as large."""
    large = np.kron(mask, np.ones((grow, grow), bool))
    padded = np.pad(large, 2)
    shifted = [np.roll(padded, (i, j), (0, 1)) for i in (-2, 0, 2) for j in (-2, 0, 2)]
    edge = (np.any(shifted, axis=0) & ~np.all(shifted, axis=0))[2:-2, 2:-2]
    rgba = np.zeros((*edge.shape, 4), np.uint8)
    rgba[edge] = (255, 176, 0, 255)
    return Image.fromarray(rgba)


def moved(mask: Mask, right: float, down: float, factor: float) -> Mask:
    """A lesion moved by shares of the picture and grown about its own centre; what leaves the picture is cut."""
    h, w = mask.shape
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask
    y_0, x_0 = rows.mean(), columns.mean()
    y, x = np.mgrid[:h, :w]
    source_y = np.rint((y - y_0 - down * h) / factor + y_0).astype(int)
    source_x = np.rint((x - x_0 - right * w) / factor + x_0).astype(int)
    inside = (source_y >= 0) & (source_y < h) & (source_x >= 0) & (source_x < w)
    return inside & mask[source_y.clip(0, h - 1), source_x.clip(0, w - 1)]
