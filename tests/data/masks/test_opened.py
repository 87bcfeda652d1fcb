"""Files that a person opens: read by the rules of datasets, resized as they are, and what was seen is said."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.masks.opened import MOST_PIXELS, open_bytes
from ldm_us.data.records import load_image, load_mask
from ldm_us.files.pictures import to_picture

SIZE = (16, 16)


def content(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def lesion(h=16, w=16):
    drawn = np.zeros((h, w), np.uint8)
    drawn[h // 4 : h // 2, w // 4 : w // 2] = 255
    return drawn


def test_a_mask_of_the_right_size_is_taken_as_it_is_without_a_word():
    picture, notes = open_bytes("m.png", content(Image.fromarray(lesion())), SIZE, mask=True)
    assert (np.asarray(picture) == lesion()).all()
    assert notes == []


def test_a_mask_of_another_size_is_resized_as_a_datasets_is_and_says_so(tmp_path):
    Image.fromarray(lesion(40, 60)).save(tmp_path / "m.png")
    picture, notes = open_bytes("m.png", (tmp_path / "m.png").read_bytes(), SIZE, mask=True)
    assert (np.asarray(picture) == np.asarray(to_picture(load_mask([tmp_path / "m.png"], 16)))).all()
    assert notes == ["m.png of 60x40 was resized to 16x16, by nearest pixels."]


def test_an_image_is_resized_as_a_datasets_is_and_says_so(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    Image.fromarray(grey).save(tmp_path / "i.png")
    picture, notes = open_bytes("i.png", (tmp_path / "i.png").read_bytes(), SIZE, mask=False)
    assert (np.asarray(picture) == np.asarray(to_picture(load_image(tmp_path / "i.png", 16)[:1] / 2 + 0.5))).all()
    assert notes == ["i.png of 60x40 was resized to 16x16."]
    same, notes = open_bytes("i.png", content(Image.fromarray(grey[:16, :16])), SIZE, mask=False)
    assert (np.asarray(same) == grey[:16, :16]).all()
    assert notes == []


def test_transparency_is_read_by_the_rule_and_told():
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[4:8, 4:8] = 255
    picture, notes = open_bytes("m.png", content(Image.fromarray(rgba)), SIZE, mask=True)
    assert (np.asarray(picture) == lesion()).all()
    assert "transparency" in notes[0]


def test_a_mask_that_is_turned_by_its_orientation_is_turned_and_told():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture, notes = open_bytes("m.png", content(Image.fromarray(lesion()), exif=exif), SIZE, mask=True)
    assert (np.asarray(picture) == np.rot90(lesion(), -1)).all()
    assert "orientation" in notes[0]


def test_a_mask_that_looks_inverted_is_told():
    _, notes = open_bytes("m.png", content(Image.fromarray(255 - lesion())), SIZE, mask=True)
    assert "invert" in notes[0]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.png", b"", "m.png is an empty file"),
        ("m.png", b"no image at all", "m.png is not an image"),
        ("m.exe", b"MZ", "m.exe is no image by its name"),
        ("../../etc/passwd", b"root", "no image by its name"),
        ("m.png", content(Image.fromarray(lesion()))[:60], "m.png is damaged"),
        ("m.png", content(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))), "m.png has many greys"),
        ("m.tif", content(Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 999), "TIFF"), "m.tif"),
    ],
)
def test_what_is_no_mask_is_refused_by_its_own_name_in_one_sentence(name, data, said):
    with pytest.raises(ValueError, match=said) as refused:
        open_bytes(name, data, SIZE, mask=True)
    assert "/tmp" not in str(refused.value).replace(name, "")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    side = int(MOST_PIXELS**0.5) + 1
    data = content(Image.new("1", (side, side)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="Make it smaller"):
        open_bytes("m.png", data, SIZE, mask=True)
