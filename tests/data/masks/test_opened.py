"""Files that a person opens: read by the rules of datasets, resized as they are, and what was seen is said."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_us.config import MASK
from ldm_us.data.framing import Framing
from ldm_us.data.masks.opened import MOST_PIXELS, open_bytes
from ldm_us.data.records import load_image, load_mask
from ldm_us.data.structure import in_channels
from ldm_us.files.pictures import to_picture
from tests.data.test_medical import dicom

FIT = Framing(16).frame


def content(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def lesion(h=16, w=16):
    drawn = np.zeros((h, w), np.uint8)
    drawn[h // 4 : h // 2, w // 4 : w // 2] = 255
    return drawn


def test_a_mask_of_the_right_size_is_taken_as_it_is_without_a_word():
    picture, notes = open_bytes("m.png", content(Image.fromarray(lesion())), FIT, MASK)
    assert (np.asarray(picture) == lesion()).all()
    assert notes == []


def test_a_mask_of_another_size_is_resized_as_a_datasets_is_and_says_so(tmp_path):
    Image.fromarray(lesion(40, 60)).save(tmp_path / "m.png")
    picture, notes = open_bytes("m.png", (tmp_path / "m.png").read_bytes(), FIT, MASK)
    assert (np.asarray(picture) == np.asarray(to_picture(load_mask([tmp_path / "m.png"], 16)))).all()
    assert notes == ["m.png of 60x40 was resized to 16x16, by nearest pixels."]


def test_an_image_is_resized_as_a_datasets_is_and_says_so(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    Image.fromarray(grey).save(tmp_path / "i.png")
    picture, notes = open_bytes("i.png", (tmp_path / "i.png").read_bytes(), FIT)
    assert (np.asarray(picture) == np.asarray(to_picture(load_image(tmp_path / "i.png", 16)[:1] / 2 + 0.5))).all()
    assert notes == ["i.png of 60x40 was resized to 16x16."]
    same, notes = open_bytes("i.png", content(Image.fromarray(grey[:16, :16])), FIT)
    assert (np.asarray(same) == grey[:16, :16]).all()
    assert notes == []


def test_transparency_is_read_by_the_rule_and_told():
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[4:8, 4:8] = 255
    picture, notes = open_bytes("m.png", content(Image.fromarray(rgba)), FIT, MASK)
    assert (np.asarray(picture) == lesion()).all()
    assert "transparency" in notes[0]


def test_a_mask_that_is_turned_by_its_orientation_is_turned_and_told():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture, notes = open_bytes("m.png", content(Image.fromarray(lesion()), exif=exif), FIT, MASK)
    assert (np.asarray(picture) == np.rot90(lesion(), -1)).all()
    assert "orientation" in notes[0]


def test_a_mask_that_looks_inverted_is_told():
    _, notes = open_bytes("m.png", content(Image.fromarray(255 - lesion())), FIT, MASK)
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
        open_bytes(name, data, FIT, MASK)
    assert "/tmp" not in str(refused.value).replace(name, "")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    side = int(MOST_PIXELS**0.5) + 1
    data = content(Image.new("1", (side, side)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="Make it smaller"):
        open_bytes("m.png", data, FIT, MASK)


def test_labels_of_several_structures_come_as_their_sums_and_of_a_bucket_as_datasets_come_into_it(tmp_path):
    labels = np.zeros((24, 48), np.uint8)
    labels[4:20, 2:40], labels[8:12, 10:20], labels[8:12, 20:24] = 1, 2, 3
    Image.fromarray(labels).save(tmp_path / "m.png")
    fit, hint = Framing(32, "bucket", 8).frame, ("lobe", "nodule")
    picture, _ = open_bytes("m.png", (tmp_path / "m.png").read_bytes(), fit, hint)
    masks = in_channels([tmp_path / "m.png"], (), hint)
    assert (np.asarray(picture) == load_mask(masks, fit(48, 24))[0].numpy()).all()
    assert set(np.unique(np.asarray(picture))) == {0, 1, 2, 3}
    assert picture.size == fit(48, 24).size[::-1] == (40, 24)
    labels[0, 0] = 7
    with pytest.raises(ValueError, match=r"^m.png.*: 7 is there, and the labels with a name are 1, 2, 3"):
        open_bytes("m.png", content(Image.fromarray(labels)), fit, hint)


def test_a_dicom_file_gives_its_pixels_and_says_what_may_be_burned_in(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    path = dicom(tmp_path / "i.dcm", grey)
    picture, notes = open_bytes("i.dcm", path.read_bytes(), FIT)
    assert (np.asarray(picture) == np.asarray(to_picture(load_image(path, 16)[:1] / 2 + 0.5))).all()
    assert notes == ["i.dcm of 60x40 was resized to 16x16."]
    assert picture.info == {}
    told = open_bytes("i.dcm", dicom(path, grey, BurnedInAnnotation="YES").read_bytes(), FIT).notes
    assert told[1] == "i.dcm says that annotations are burned into its pixels: see that no name is among them."
    with pytest.raises(ValueError, match=r"i.dcm has 9000x9000 pixels.* Make it smaller"):
        open_bytes("i.dcm", dicom(path, grey, Rows=9000, Columns=9000).read_bytes(), FIT)


def test_without_the_extra_a_dicom_file_is_a_sentence_that_names_it(monkeypatch):
    monkeypatch.setattr("ldm_us.runtime.checks.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="Install the extra medical"):
        open_bytes("i.dcm", b"DICM", FIT)
