"""Pictures as a page sends and shows them: what was sent comes back, and anything else is a sentence."""

import base64

import numpy as np
import pytest
from PIL import Image

from ldm_us.display.data_urls import MOST_BYTES, data_url, drawn_mask, unpack


def check(width, height):
    if (width, height) != (9, 6):
        raise ValueError(f"{width}x{height} is not possible")


def test_a_drawing_comes_back_as_it_was_drawn():
    drawn = np.random.default_rng(0).random((6, 9)) > 0.5
    url = data_url(Image.fromarray(drawn.astype(np.uint8) * 255).convert("RGB"))
    assert (drawn_mask(url, check) == drawn).all()
    sums = np.random.default_rng(0).integers(0, 4, (6, 9), np.uint8)
    assert (drawn_mask(data_url(Image.fromarray(sums)), check, 2) == sums).all()
    assert unpack(data_url(b"bytes", "application/zip")) == b"bytes"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "no picture"),
        (7, "no picture"),
        ("", "no picture"),
        ("file:///etc/passwd", "no picture"),
        ("http://127.0.0.1/x.png", "no picture"),
        ("data:image/png;base64,???", "damaged"),
        ("data:image/png;base64," + base64.b64encode(b"no picture").decode(), "damaged"),
        (data_url(Image.new("L", (9, 5))), "9x5 is not possible"),
        ("data:image/png;base64," + "A" * (MOST_BYTES * 4 // 3 + 5), "larger than 16 MB"),
    ],
)
def test_whatever_else_is_sent_is_a_sentence(url, said):
    with pytest.raises(ValueError, match=said):
        drawn_mask(url, check)


def test_a_drawing_is_a_png_and_nothing_else():
    file_of_another_kind = data_url(b"BM" + bytes(60), "image/png")
    with pytest.raises(ValueError, match="damaged"):
        drawn_mask(file_of_another_kind, check)


def test_a_structure_that_there_is_not_is_a_sentence():
    with pytest.raises(ValueError, match="has 4 in it, and there are 2 structures"):
        drawn_mask(data_url(Image.new("L", (9, 6), 4)), check, 2)
