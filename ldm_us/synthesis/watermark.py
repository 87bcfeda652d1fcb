"""An invisible watermark that says "synthetic", for pictures that lose their PNG fields.   Extra: watermark.

blind-watermark hides bits in the singular values of 4x4 blocks of the DCT of a wavelet transform. The 32 bits repeat
over the picture: at 128x128 they cost 42 dB and survive JPEG of quality 50; a crop, another size or another brightness
they do not survive.
"""

from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

MESSAGE = np.unpackbits(np.frombuffer(b"SYN!", np.uint8))
MOST_WRONG = 3  # of 32 bits: a picture without the mark passes with a probability of 1.3e-6
SMALLEST = 64  # pixels along one side: two blocks a bit
LUMA = np.array([0.114, 0.587, 0.299])  # of blue, green, red, as OpenCV's YUV has it


def add_watermark(picture: Image.Image) -> Image.Image:
    """Grey picture -> the same with the mark in it, always the same bits."""
    core = _core()
    core.read_wm(MESSAGE)
    core.read_img_arr(img=_three_channels(picture))
    return Image.fromarray(np.rint(core.embed() @ LUMA).clip(0, 255).astype(np.uint8))


def has_watermark(picture: Image.Image) -> bool:
    """Whether a picture carries the mark. Raise ValueError where the extra is missing."""
    core = _core()
    if min(picture.size) < SMALLEST:
        return False
    core.wm_size = len(MESSAGE)
    votes = core.extract_raw(img=_three_channels(picture))[0]  # the brightness; the colours of a grey picture hold none
    read = np.array([votes[i :: len(MESSAGE)].mean() > 0.5 for i in range(len(MESSAGE))])
    return int((read != MESSAGE).sum()) <= MOST_WRONG


def watermark_version() -> str:
    """Library and version, for the fields of a sample. Raise ValueError where the extra is missing."""
    _core()
    return f"blind-watermark {version('blind-watermark')}"


def check_watermark_size(size: int) -> None:
    """Refuse a picture that has too few blocks for the bits."""
    if size < SMALLEST:
        raise ValueError(f"--watermark: a picture of {size} pixels is too small for it. Use {SMALLEST} or more.")


def _core() -> Any:
    try:
        from blind_watermark.bwm_core import WaterMarkCore
    except ImportError as error:
        raise ValueError(
            f"a watermark needs the extra `watermark` ({error}): pip install blind-watermark, or `pip install -e "
            "'.[watermark]'`."
        ) from error
    return WaterMarkCore()


def _three_channels(picture: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(picture.convert("L"))] * 3, axis=-1)
