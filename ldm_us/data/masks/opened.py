"""Single files that a person opens, read and resized as datasets are, with what was seen of them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ldm_us.data.framing import Frame
from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.masks.shape import canvas_picture
from ldm_us.data.medical import DICOM, is_medical, read_dicom, read_header
from ldm_us.data.opening import IMAGE_SUFFIXES, open_image
from ldm_us.data.records import image_tensor, mask_tensor, small_lesions, union_of_masks
from ldm_us.data.structure import in_channels
from ldm_us.files.pictures import to_picture

MOST_PIXELS = 32_000_000  # of a picture
Fit = Callable[[int, int], Frame]  # the size that a picture of this width and height gets, and how


class Opened(NamedTuple):
    """A picture of the size of the samples, and what there is to say about it."""

    picture: Image.Image  # mode L; of masks as canvas_picture has them
    notes: list[str]


def open_bytes(name: str, content: bytes, fit: Fit, hint: tuple[str, ...] | None = None) -> Opened:
    """Read a file of this name: a mask of what the hint shows, else an image. ValueError: what readers refuse."""
    suffix = Path(name).suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, *DICOM):
        raise ValueError(f"{name} is no image by its name. Give a file such as .png, .jpg, .tif or .dcm.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(content)
        try:
            check_pixels(path)
            opened = opened_image(path, name, fit) if hint is None else opened_mask(path, name, fit, hint)
            return opened._replace(notes=[*opened.notes, *burned_in(path, name)])
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error


def check_pixels(path: Path) -> None:
    """Refuse a picture of too many pixels by its header, before they are decoded; other faults are the readers'."""
    if is_medical(path):
        data = read_dicom(path, pixels=False)
        width, height = int(data.get("Columns", 0) or 0), int(data.get("Rows", 0) or 0)
    else:
        width, height = size_in_header(path)
    if width * height > MOST_PIXELS:
        raise ValueError(f"{path} has {width}x{height} pixels, more than {MOST_PIXELS:,}. Make it smaller.")


def size_in_header(path: Path) -> tuple[int, int]:
    """Width and height, as the header of a picture says; 0 where it says none."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def burned_in(path: Path, name: str) -> list[str]:
    """A sentence where a file of a scanner says that there may be names in its pixels."""
    found = is_medical(path) and read_header(path).burned_in
    told = f"{name} says that annotations are burned into its pixels: see that no name is among them."
    return [told] if found else []


def opened_image(path: Path, name: str, fit: Fit) -> Opened:
    """An image, grey, of the size of the samples."""
    picture = open_image(path)
    frame = fit(*picture.size)
    same = picture.size[::-1] == frame.size
    notes = [] if same else [f"{name} of {picture.width}x{picture.height} was resized to {frame}."]
    return Opened(picture.convert("L") if same else to_picture(image_tensor(picture, frame)[:1] / 2 + 0.5), notes)


def opened_mask(path: Path, name: str, fit: Fit, hint: tuple[str, ...]) -> Opened:
    """A mask, after the rule of all masks, of the size of the samples."""
    union = union_of_masks(in_channels([path], (), hint))
    assert union is not None
    frame = fit(*union.size)
    notes = []
    if union.size[::-1] != frame.size:
        notes.append(f"{name} of {union.width}x{union.height} was resized to {frame}, by nearest pixels.")
    if small_lesions(union, frame):
        notes.append(f"{name} has lesions smaller than a pixel: each is kept as one pixel.")
    if len(hint) == 1 and looks_inverted(union):
        notes.append(
            f"{name} is white in most of the picture and in its corners, as an inverted mask is: white is lesion."
        )
    if not is_medical(path):
        with Image.open(path) as picture:
            if picture.getexif().get(0x0112, 1) != 1:
                notes.append(f"{name} was turned, as its EXIF orientation asks.")
            if picture.has_transparency_data and len(hint) == 1:
                notes.append(f"{name} has transparency: what is transparent is no lesion, unless all of it is alike.")
    return Opened(canvas_picture(mask_tensor(union, frame)[0].numpy(), len(hint)), notes)
