"""Pictures as a page sends and shows them: data URLs."""

import base64
import binascii
import io
from collections.abc import Callable

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


def drawn_mask(url: object, check: Callable[[int, int], None], count: int = 1) -> NDArray[np.uint8]:
    """The mask that was drawn on the canvas, (h, w): of so many structures the sum of 2^k, of one 0 or 1.

    `check` refuses a width and height, before anything is decoded.
    """
    content = unpack(url)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            size = picture.size
        check(*size)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            levels = np.array(picture.convert("L"))
    except (OSError, SyntaxError) as error:
        raise ValueError("The drawing arrived damaged. Draw it anew.") from error
    if count > 1 and levels.max() >= 1 << count:
        raise ValueError(f"The drawing has {levels.max()} in it, and there are {count} structures. Draw it anew.")
    return levels if count > 1 else (levels > 127).astype(np.uint8)
