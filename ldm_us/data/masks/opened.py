"""Single files that a person opens, read and resized as datasets are, with what was seen of them."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ldm_us.data.framing import as_frame, fit_by
from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.opening import IMAGE_SUFFIXES, open_image
from ldm_us.data.records import image_tensor, mask_tensor, small_lesions, union_of_masks
from ldm_us.files.pictures import to_picture

MOST_PIXELS = 32_000_000  # of a picture
Size = tuple[int, int]  # width and height


class Opened(NamedTuple):
    """A picture of the size of the samples, and what there is to say about it."""

    picture: Image.Image  # mode L
    notes: list[str]


def open_bytes(name: str, content: bytes, size: Size, mask: bool, aspect: str = "squash") -> Opened:
    """Read a file of this name, by a rule of ASPECTS. Raise ValueError, in one sentence, for what readers refuse."""
    suffix = Path(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"{name} is no image by its name. Give a file such as .png, .jpg or .tif.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(content)
        try:
            check_pixels(path)
            return (opened_mask if mask else opened_image)(path, name, size, aspect)
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


def opened_image(path: Path, name: str, size: Size, aspect: str) -> Opened:
    """An image, grey, of the size of the samples."""
    picture = open_image(path)
    frame = fit_by(aspect, as_frame(size[::-1]), *picture.size)
    same = picture.size == size
    notes = [] if same else [f"{name} of {picture.width}x{picture.height} was resized to {size[0]}x{size[1]}."]
    return Opened(picture.convert("L") if same else to_picture(image_tensor(picture, frame)[:1] / 2 + 0.5), notes)


def opened_mask(path: Path, name: str, size: Size, aspect: str) -> Opened:
    """A mask, after the rule of all masks, of the size of the samples."""
    union = union_of_masks([path])
    assert union is not None
    frame = fit_by(aspect, as_frame(size[::-1]), *union.size)
    notes = []
    if union.size != size:
        notes.append(f"{name} of {union.width}x{union.height} was resized to {size[0]}x{size[1]}, by nearest pixels.")
    if small_lesions(union, frame):
        notes.append(f"{name} has lesions smaller than a pixel: each is kept as one pixel.")
    if looks_inverted(union):
        notes.append(
            f"{name} is white in most of the picture and in its corners, as an inverted mask is: white is lesion."
        )
    with Image.open(path) as picture:
        if picture.getexif().get(0x0112, 1) != 1:
            notes.append(f"{name} was turned, as its EXIF orientation asks.")
        if picture.has_transparency_data:
            notes.append(f"{name} has transparency: what is transparent is no lesion, unless all of it is alike.")
    return Opened(to_picture(mask_tensor(union, frame)), notes)
