"""Masks that do not fit: resized with a note, or refused with one sentence before anything is written."""

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.records import load_mask
from ldm_us.synthesis.fields import unpack_mask


def save(path, value, shape=(16, 16)):
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return path


def test_a_mask_of_another_size_is_resized_from_nearest_pixels_with_a_note(run, tmp_path, capsys):
    drawn = np.zeros((40, 60), np.uint8)
    drawn[10:30, 20:50] = 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    run(tmp_path / "out", "--class", "benign", "--mask", tmp_path / "drawn.png")
    notes = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("note: ")]
    assert notes == ["note: drawn.png of 60x40 resized to 16x16, each pixel from the nearest one."]
    with Image.open(tmp_path / "out" / "0000_drawn_seed0.png") as picture:
        seen = unpack_mask(picture.text["mask_bits"], 16)
    assert seen.equal(load_mask((tmp_path / "drawn.png",), 16))


def test_a_folder_of_masks_of_another_size_gives_one_note(run, masks, tmp_path, capsys):
    run(tmp_path / "out", "--mask", masks, "--size", 32, "--n", 1)
    notes = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: benign (1)_mask.png of 16x16 and 5 other masks resized to 32x32, each pixel from the nearest one."
    ]


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("benign", 0, "at 16x16 pixels: an empty mask for the class benign"),
        ("malignant", 0, "at 16x16 pixels: an empty mask for the class malignant"),
        ("normal", 255, "a lesion mask for the class normal. Use --class benign or malignant"),
    ],
)
def test_a_mask_that_contradicts_its_class_is_refused(refused, tmp_path, label, value, sentence):
    asked = ("--class", label, "--mask", save(tmp_path / "drawn.png", value))
    assert sentence in refused(tmp_path / "out", *asked)
    assert not (tmp_path / "out").exists()


def test_a_lesion_that_vanishes_at_the_size_of_the_model_is_refused(refused, tmp_path):
    dot = np.zeros((400, 400), np.uint8)
    dot[0, 0] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    assert "dot.png at 16x16 pixels: an empty mask" in refused(
        tmp_path / "out", "--class", "benign", "--mask", tmp_path / "dot.png"
    )


def test_a_text_of_ones_own_takes_any_mask(run, tmp_path):
    run(tmp_path / "out", "--prompt", "a liver", "--mask", save(tmp_path / "drawn.png", 0))
    assert len(list((tmp_path / "out").glob("0000_drawn_seed*.png"))) == 2


def test_the_layout_of_busi_without_masks_says_that_lesions_have_none(run, tmp_path, capsys):
    run(tmp_path / "out", "--layout", "busi", "--n", 1)
    assert "note: without --mask there are no mask files for benign and malignant." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*/*_mask.png")] == ["normal (1)_mask.png"]
