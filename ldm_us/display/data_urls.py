"""Pictures as a page sends and shows them: data URLs."""

import base64
import binascii
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_BYTES = 16 << 20  # of a file


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


def drawn_mask(url: object, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask that was drawn on the canvas, (h, w)."""
    try:
        with Image.open(io.BytesIO(unpack(url)), formats=["PNG"]) as picture:
            if picture.size == size:
                return np.asarray(picture.convert("L")) > 127
    except (OSError, SyntaxError) as error:
        raise ValueError("The drawing arrived damaged. Draw it anew.") from error
    raise ValueError(f"The drawing is {picture.width}x{picture.height} and not {size[0]}x{size[1]}. Draw it anew.")
