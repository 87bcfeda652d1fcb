"""Masks that do not fit: resized with a note, or refused with one sentence before anything is written."""

import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from ldm_us.data.records import load_mask
from ldm_us.data.words import words_in
from ldm_us.synthesis.claims import untrue_claims
from ldm_us.synthesis.fields import unpack_mask
from ldm_us.synthesis.subjects import left_out, masked_subjects


def notes(capsys):
    """The notes that a run printed."""
    return [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("note: ")]


def save(path, value, shape=(16, 16)):
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return path


def test_a_mask_of_another_size_is_resized_from_nearest_pixels_with_a_note(run, tmp_path, capsys):
    drawn = np.zeros((40, 60), np.uint8)
    drawn[10:30, 20:50] = 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    run(tmp_path / "out", "--class", "benign", "--mask", tmp_path / "drawn.png")
    assert notes(capsys) == ["note: drawn.png of 60x40 resized to 16x16, each pixel from the nearest one."]
    with Image.open(tmp_path / "out" / "0000_drawn_seed0.png") as picture:
        seen = unpack_mask(picture.text["mask_bits"], 16)
    assert seen.equal(load_mask((tmp_path / "drawn.png",), 16))


def test_a_folder_of_masks_of_another_size_gives_one_note(run, masks, tmp_path, capsys):
    run(tmp_path / "out", "--mask", masks, "--size", 32, "--n", 1)
    assert notes(capsys) == [
        "note: benign (1)_mask.png of 16x16 and 5 other masks resized to 32x32, each pixel from the nearest one."
    ]


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("benign", 0, "at 16x16 pixels: an empty mask for the class benign"),
        ("malignant", 0, "at 16x16 pixels: an empty mask for the class malignant"),
        ("normal", 255, "a lesion mask for the class normal. Use another --class"),
    ],
)
def test_a_mask_that_contradicts_its_class_is_refused(refused, tmp_path, label, value, sentence):
    asked = ("--class", label, "--mask", save(tmp_path / "drawn.png", value))
    assert sentence in refused(tmp_path / "out", *asked)
    assert not (tmp_path / "out").exists()


def test_a_lesion_smaller_than_a_pixel_of_the_model_is_kept_as_one_with_a_note(run, tmp_path, capsys):
    dot = np.zeros((400, 400), np.uint8)
    dot[0, 0] = 255
    Image.fromarray(dot).save(tmp_path / "dot.png")
    run(tmp_path / "out", "--class", "benign", "--mask", tmp_path / "dot.png", "--n", 1)
    assert "note: dot.png with lesions smaller than a pixel at 16x16: each is kept as one pixel." in notes(capsys)
    with Image.open(tmp_path / "out" / "0000_dot_seed0.png") as picture:
        assert unpack_mask(picture.text["mask_bits"], 16)[0].nonzero().tolist() == [[0, 0]]


def test_a_folder_of_masks_takes_every_format_and_names_what_it_leaves_out(run, tmp_path, capsys):
    folder = tmp_path / "drawn"
    folder.mkdir()
    drawn = np.zeros((16, 16), np.uint8)
    drawn[3:9, 4:12] = 255
    for name in ("a.png", "b.webp", "c.gif", "d.PNG", "e.TiFF", "f.jpg", "g.ppm"):
        Image.fromarray(drawn).save(folder / name, quality=100)
    (folder / "notes.txt").write_text("drawn on Monday")
    (folder / "more").mkdir()
    run(tmp_path / "out", "--class", "benign", "--mask", folder, "--n", 1)
    made = sorted(path.name for path in (tmp_path / "out").glob("0*.png"))
    assert made == [f"000{i}_{name}_seed0.png" for i, name in enumerate("abcdefg")]
    assert f"note: --mask {folder}, left out: 2: more, notes.txt." in notes(capsys)


def test_masks_with_names_of_busi_tell_their_class_in_every_format_and_images_beside_them_are_not_left_out(
    run, tmp_path
):
    folder = tmp_path / "benign"
    folder.mkdir()
    drawn = np.zeros((16, 16), np.uint8)
    drawn[3:9, 4:12] = 255
    for name in ("benign (1)_mask.webp", "benign (1)_mask_1.png", "benign (2)_Mask.png", "benign (1).bmp", "x.png"):
        Image.fromarray(drawn).save(folder / name, lossless=True)
    subjects = masked_subjects(folder)
    assert [(one.name, one.label, len(one.masks)) for one in subjects] == [
        ("benign (1)", "benign", 2),
        ("benign (2)", "benign", 1),
    ]
    assert subjects[0].original == folder / "benign (1).bmp"
    assert left_out(folder) == [f"--mask {folder}, left out: 1: x.png."]
    own = tmp_path / "out"
    run(own, "--prompt", "a cyst", "--mask", folder / "benign (1)_mask.webp", "--n", 1)
    with Image.open(own / "0000_benign_(1)_seed0.png") as picture:
        assert picture.text["class"] == "benign"
        assert untrue_claims(picture.text, words_in("m", {})) == []


def test_a_dataset_of_masks_names_what_it_leaves_out(masks, tmp_path):
    folder = tmp_path / "busi"
    shutil.copytree(masks, folder)
    assert left_out(folder) == []
    (folder / "benign" / "benign (1).png").unlink()
    Image.new("L", (16, 16)).save(folder / "benign" / "benign (9).png")
    Image.new("L", (16, 16)).save(folder / "malignant" / "other.png")
    assert left_out(folder) == [f"--mask {folder}, left out: 3: benign (1)_mask.png, other.png, benign (9).png."]


def test_a_mask_that_looks_inverted_gets_a_note(run, tmp_path, capsys):
    white = np.full((16, 16), 255, np.uint8)
    white[4:9, 4:9] = 0
    Image.fromarray(white).save(tmp_path / "drawn.png")
    run(tmp_path / "out", "--class", "benign", "--mask", tmp_path / "drawn.png", "--n", 1)
    assert notes(capsys) == [
        "note: drawn.png white in most of the picture and in all four corners: only white is lesion. "
        "`python -m ldm_us.data binarize --lesion dark` inverts masks."
    ]


def test_regions_of_an_edit_that_vanish_are_told(run, tmp_path, capsys):
    Image.new("L", (16, 16), 90).save(tmp_path / "image.png")
    region = np.zeros((400, 400), np.uint8)
    region[100:300, 100:300] = 255
    region[0:3, 0:3] = 255
    Image.fromarray(region).save(tmp_path / "region.png")
    edit = ("--init", tmp_path / "image.png", "--inpaint", tmp_path / "region.png", "--class", "normal", "--n", 1)
    run(tmp_path / "out", *edit)
    assert f"note: {tmp_path / 'region.png'}: 1 of its regions vanish at 16x16." in notes(capsys)


def test_an_image_to_edit_and_its_region_are_turned_as_their_exif_orientation_says(run, tmp_path):
    rng = np.random.default_rng(0)
    pixels, region = rng.integers(0, 256, (16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    region[:, 12:] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, picture in (("image.png", pixels), ("region.png", region)):
        Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=exif)  # shown upright
    edit = ("--init", tmp_path / "image.png", "--inpaint", tmp_path / "region.png", "--class", "normal", "--n", 1)
    run(tmp_path / "out", *edit)
    after = np.asarray(Image.open(tmp_path / "out" / "0000_normal_seed0.png"))
    assert (after[:, :12] == pixels[:, :12]).all()
    assert (after[:, 12:] != pixels[:, 12:]).any()


def test_a_text_of_ones_own_takes_any_mask(run, tmp_path):
    run(tmp_path / "out", "--prompt", "a liver", "--mask", save(tmp_path / "drawn.png", 0))
    assert len(list((tmp_path / "out").glob("0000_drawn_seed*.png"))) == 2


def test_the_layout_of_busi_without_masks_says_that_lesions_have_none(run, tmp_path, capsys):
    run(tmp_path / "out", "--layout", "busi", "--n", 1)
    assert "note: without --mask there are no mask files for benign and malignant." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*/*_mask.png")] == ["normal (1)_mask.png"]


@pytest.mark.parametrize("end", ["_mask.jpg", "_Mask.PNG", "-mask.png", "_mask.webp"])
@pytest.mark.parametrize("folder", ["benign", "Benign"])
def test_a_dataset_as_the_reader_takes_it_is_a_dataset_of_masks_too(tmp_path, folder, end):
    (tmp_path / folder).mkdir()
    (tmp_path / "normal").mkdir()
    for name in (f"{folder}/benign (1).png", f"{folder}/benign (1){end}", "normal/normal (1).png", "overview.png"):
        Image.new("L", (16, 16)).save(tmp_path / name, "JPEG")
    (subject,) = masked_subjects(tmp_path)
    assert (subject.name, subject.label) == ("benign (1)", "benign")
    assert (subject.original.name, [path.name for path in subject.masks]) == ("benign (1).png", [f"benign (1){end}"])
    assert left_out(tmp_path) == [f"--mask {tmp_path}, left out: 2: overview.png, normal (1).png."]


def test_masks_beside_an_empty_folder_of_a_class_are_a_folder_of_masks(tmp_path):
    (tmp_path / "normal").mkdir()
    Image.new("L", (16, 16), 255).save(tmp_path / "a.png")
    assert [subject.name for subject in masked_subjects(tmp_path)] == ["a"]
    assert left_out(tmp_path) == [f"--mask {tmp_path}, left out: 1: normal."]


def test_a_dataset_json_of_another_program_beside_plain_masks_says_nothing(tmp_path):
    Image.new("L", (8, 8), 255).save(tmp_path / "a_mask.png")
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0}, "numTraining": 1}')
    (one,) = masked_subjects(tmp_path)
    (other,) = masked_subjects(tmp_path / "a_mask.png")
    assert one.masks == other.masks == (tmp_path / "a_mask.png",)
    with pytest.raises(ValueError, match="'labels' is not known"):
        masked_subjects(tmp_path, hint=("lobe", "nodule"))
