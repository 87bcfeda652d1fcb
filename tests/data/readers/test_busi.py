"""BUSI reader: names become records in natural order, near-duplicates share a group, wrong folders are explained."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.readers.busi import families, read_busi
from ldm_us.data.readers.datasets import read_dataset, read_whole
from ldm_us.data.records import load_pair
from ldm_us.data.split import split_by_group


def touch(root: Path, *names: str) -> Path:
    """Create empty files; the reader goes by names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(paths) -> list[str]:
    return [path.name for path in paths]


def test_the_folder_itself_and_the_one_that_holds_it_give_the_same_records(tmp_path):
    root = touch(tmp_path / "Dataset_BUSI_with_GT", "benign/benign (1).png", "benign/benign (1)_mask.png")
    assert len(read_dataset(root)) == 1
    assert read_busi(root) == read_dataset(root) == read_dataset(tmp_path)


def test_a_record_has_its_image_masks_class_and_prompt(tmp_path):
    root = touch(tmp_path, "malignant/malignant (3).png", "malignant/malignant (3)_mask.png")
    (record,) = read_busi(root)
    assert record.image == root / "malignant" / "malignant (3).png"
    assert record.masks == (root / "malignant" / "malignant (3)_mask.png",)
    assert record.label == "malignant"
    assert record.prompt == "Ultrasound image of a malignant breast"


def test_images_come_in_numeric_order_class_by_class(tmp_path):
    for label in ("normal", "malignant", "benign"):
        touch(tmp_path, *(f"{label}/{label} ({n}).png" for n in (10, 2, 100, 1)))
    expected = [f"{label} ({n}).png" for label in ("benign", "malignant", "normal") for n in (1, 2, 10, 100)]
    assert names(record.image for record in read_busi(tmp_path)) == expected


def test_masks_come_in_numeric_order_and_belong_to_their_own_image(tmp_path):
    suffixes = ("_mask_10", "_mask_2", "_mask", "_mask_1")
    touch(tmp_path, "benign/benign (1).png", *(f"benign/benign (1){suffix}.png" for suffix in suffixes))
    touch(tmp_path, "benign/benign (11).png", "benign/benign (11)_mask.png")
    first, second = read_busi(tmp_path)
    assert names(first.masks) == [f"benign (1){suffix}.png" for suffix in ("_mask", "_mask_1", "_mask_2", "_mask_10")]
    assert names(second.masks) == ["benign (11)_mask.png"]


def test_two_and_three_masks_of_a_read_record_are_ored(tmp_path):
    folder = tmp_path / "benign"
    folder.mkdir()
    for number, count in ((4, 2), (25, 3)):
        Image.new("RGB", (4, 4), (80, 80, 80)).save(folder / f"benign ({number}).png")
        for nth in range(count):
            mask = np.zeros((4, 4), dtype=np.uint8)
            mask[nth] = 255
            mode = ("1", "RGBA", "RGB")[nth]
            suffix = f"_{nth}" if nth else ""
            Image.fromarray(mask).convert(mode).save(folder / f"benign ({number})_mask{suffix}.png")
    covered = [load_pair(record, 4)[1].sum().item() for record in read_busi(tmp_path)]
    assert covered == [8, 12]


def test_a_lesion_image_without_a_mask_is_kept_with_no_masks(tmp_path):
    touch(tmp_path, "benign/benign (1).png")
    assert [record.masks for record in read_busi(tmp_path)] == [()]


def test_files_that_are_not_busi_are_left_out_and_give_no_record(tmp_path):
    stray = ["Thumbs.db", "benign (1) - Copy.png", "malignant (2).png"]
    touch(tmp_path, "benign/benign (1).png", "benign/.DS_Store", "benign/._benign (1).png")
    touch(tmp_path, *(f"benign/{name}" for name in stray))
    reading = read_whole(tmp_path)
    assert names(record.image for record in reading.records) == ["benign (1).png"]
    assert sorted(path.name for paths in reading.left_out.values() for path in paths) == stray, "hidden ones are none"


def test_a_mask_whose_image_is_missing_is_left_out_under_its_own_kind(tmp_path):
    touch(tmp_path, "benign/benign (1).png", "benign/benign (2)_mask.png", "benign/benign (2)_mask_1.png")
    reading = read_whole(tmp_path)
    assert names(reading.left_out["masks whose image is missing"]) == ["benign (2)_mask.png", "benign (2)_mask_1.png"]
    assert len(reading.records) == 1


def test_a_mask_beside_its_image_is_not_called_one_whose_image_is_missing(tmp_path):
    touch(tmp_path, "benign/benign (1).png", "cyst/Cyst (1).png", "cyst/cyst (1)_mask.png")
    (kind,) = read_whole(tmp_path).left_out
    assert kind.endswith("/cyst/")


@pytest.mark.parametrize("folder", ["Benign", "BENIGN", "benign"])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPEG", ".bmp", ".webp", ".gif", ".TIFF"])
def test_other_letters_and_suffixes_are_read_as_what_they_mean(tmp_path, folder, suffix):
    touch(tmp_path, f"{folder}/{folder} (61){suffix}", f"{folder}/{folder} (61)_Mask{suffix}")
    touch(tmp_path, f"{folder}/benign (9001){suffix}", f"{folder}/benign (9001)-mask{suffix}")
    reading = read_whole(tmp_path)
    assert [(r.image.stem[-3:], r.label, len(r.masks), r.group) for r in reading.records] == [
        ("61)", "benign", 1, "busi:benign (108)"),
        ("01)", "benign", 1, "busi:benign (9001)"),
    ]
    assert reading.left_out == {}


def test_of_two_spellings_busis_own_is_taken_and_the_other_is_left_out(tmp_path):
    own = [f"benign (1){end}" for end in (".png", "_mask.png", "_mask_1.png")]
    touch(tmp_path, *(f"benign/{name}" for name in [*own, "benign (1).jpg", "benign (1)_Mask.png"]))
    reading = read_whole(tmp_path)
    (record,) = reading.records
    assert names([record.image, *record.masks]) == own
    assert sorted(path.name for paths in reading.left_out.values() for path in paths) == [
        "benign (1).jpg",
        "benign (1)_Mask.png",
    ]


def test_two_folders_of_one_class_are_not_both_it(tmp_path):
    touch(tmp_path, "normal/normal (1).png", "Normal/normal (2).png")
    assert names(record.image for record in read_busi(tmp_path)) == ["normal (1).png"]


def test_only_some_of_the_classes_is_fine(tmp_path):
    touch(tmp_path, "normal/normal (1).png", "normal/normal (1)_mask.png")
    assert [record.label for record in read_busi(tmp_path)] == ["normal"]


def test_an_empty_class_folder_is_an_error_that_names_it(tmp_path):
    touch(tmp_path, "benign/benign (1).png", "malignant/.DS_Store")
    with pytest.raises(ValueError, match=r"no image in malignant\. Add files named like 'malignant \(1\)\.png'"):
        read_busi(tmp_path)


def test_a_folder_without_classes_is_an_error_that_says_what_was_expected_and_found(tmp_path):
    touch(tmp_path, "BUSBRA/x.png", "readme.txt")
    with pytest.raises(ValueError, match=r"expected the folders benign, malignant or normal .*found BUSBRA/, readme"):
        read_busi(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found nothing"):
        read_busi(tmp_path)


def test_a_missing_folder_and_a_file_are_errors(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_busi(tmp_path / "none")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        read_busi(touch(tmp_path, "archive.zip") / "archive.zip")


def test_near_duplicates_share_the_group_named_after_the_first_of_their_family(tmp_path):
    touch(tmp_path, *(f"benign/benign ({n}).png" for n in (61, 94, 108)))
    assert {record.group for record in read_busi(tmp_path)} == {"busi:benign (108)"}


def test_an_image_that_the_list_does_not_know_is_its_own_group(tmp_path):
    touch(tmp_path, "benign/benign (9001).png")
    assert "benign (9001)" not in families()
    assert [record.group for record in read_busi(tmp_path)] == ["busi:benign (9001)"]


def test_a_family_across_two_classes_is_one_group_and_stays_in_training(tmp_path):
    """benign (42), benign (131) and malignant (51) show the same picture."""
    touch(tmp_path, "benign/benign (42).png", "benign/benign (131).png", "malignant/malignant (51).png")
    touch(tmp_path, *(f"{label}/{label} ({n}).png" for label in ("benign", "malignant") for n in (9001, 9002)))
    records = read_busi(tmp_path)
    assert len({record.group for record in records}) == 5
    for seed in range(10):
        _, test = split_by_group(records, 0.5, seed)
        assert test
        assert "busi:benign (131)" not in {record.group for record in test}


def test_every_listed_image_is_in_exactly_one_family():
    lists = json.loads(files("ldm_us.data.readers").joinpath("busi_families.json").read_text(encoding="utf-8"))
    assert len(families()) == sum(len(family) for family in lists)


def test_the_records_do_not_depend_on_the_order_of_the_directory(tmp_path):
    made = ["benign (2).png", "benign (1)_mask_1.png", "benign (1).png", "benign (2)_mask.png", "benign (1)_mask.png"]
    listings = []
    for order in (made, made[::-1]):
        listings.append(read_busi(touch(tmp_path, *(f"benign/{name}" for name in order))))
        shutil.rmtree(tmp_path / "benign")
    assert listings[0] == listings[1]
