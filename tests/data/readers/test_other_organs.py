"""Readers of other organs and of what labelling programs write: classes, structures, prompts and groups."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.decoded import Decoded, check_pairs
from ldm_us.data.opening import open_mask
from ldm_us.data.organ import UNKNOWN
from ldm_us.data.readers.datasets import read_dataset, read_whole
from ldm_us.data.records import load_mask, load_pair
from ldm_us.data.structure import Structure
from ldm_us.training.dataset import data_hash
from tests.data.readers.test_datasets import OTHER_ORGANS, WHITE, busbra, captions, coco, ddti, described, save, tn3k


@pytest.mark.parametrize("make", OTHER_ORGANS)
def test_every_record_of_another_organ_loads_and_is_kept_as_it_is_decoded(tmp_path, make):
    records = read_dataset(make(tmp_path / "data"))
    kept = Decoded(tmp_path / "cache", 8)
    check_pairs(records, kept)
    table, at = kept.mask_facts(records)
    for record, share in zip(records, table["share"][at], strict=True):
        _, hint = load_pair(record, 8)
        assert share == pytest.approx(float(hint.mean()))
        assert "breast" not in record.prompt


def test_the_score_of_ddti_is_the_class_until_a_description_joins_scores(tmp_path):
    root = ddti(tmp_path)
    reading = read_whole(root)
    first, second, other = reading.records
    assert [r.image.name for r in reading.records] == ["7_1.jpg", "7_2.jpg", "12_1.jpg"]
    assert (first.label, first.prompt) == ("TI-RADS 4a", "Ultrasound image of a TI-RADS 4a thyroid nodule, from DDTI")
    assert (other.label, other.prompt) == (UNKNOWN, "Ultrasound image of a thyroid nodule, from DDTI")
    assert first.group == second.group == "ddti:7"
    assert (first.structures, second.masks, first.masks[0].name) == (("nodule",), (), "7.xml (image 1)")
    assert reading.notes == ["1 images have no TI-RADS, and so no class"]
    drawn = np.asarray(open_mask(first.masks[0])) > 0
    assert np.argwhere(drawn).min(axis=0).tolist() == [1, 1]
    assert drawn.sum() == 4 * 3
    (root / "dataset.json").write_text(json.dumps({"classes": {"benign": ["2", "3"], "malignant": ["4a", "4b"]}}))
    assert read_dataset(root)[0].prompt == "Ultrasound image of a malignant thyroid nodule, from DDTI"
    (root / "7.xml").write_text("<case><tirads>6</tirads></case>")
    with pytest.raises(ValueError, match=r"7\.xml: the class is '6', and there are benign, malignant, 2, 3, 4a, 4b\."):
        read_dataset(root)
    (root / "7.xml").write_text("<case>")
    with pytest.raises(ValueError, match=r"7\.xml is not a case of DDTI \(.*Copy it again"):
        read_dataset(root)


def test_folders_of_images_and_masks_are_paired_by_name_whatever_their_formats(tmp_path):
    first, second = read_dataset(tn3k(tmp_path))
    assert [first.masks[0].parent.name, second.masks[0].parent.name] == ["test-mask", "trainval-mask"]
    assert first.group == "tn3k:file test-image/0000.jpg"
    assert (first.prompt, first.shows) == ("Ultrasound image of a thyroid nodule, from TN3K", None)


def test_categories_are_structures_with_masks_of_their_own_and_the_first_described_one_is_the_class(tmp_path):
    root = coco(tmp_path)
    reading = read_whole(root)
    both, boxed, bare = reading.records
    assert both.structures == ("Cyst", "nodule")
    assert (both.label, boxed.label, bare.label) == ("cyst", "nodule", UNKNOWN)
    assert (both.prompt, bare.prompt) == ("Ultrasound image, cyst", "Ultrasound image")
    assert reading.notes == ["annotations without an outline, such as boxes, are no masks: nodule 1 images"]
    square, corner = (np.asarray(open_mask(mask)) > 0 for mask in both.masks)
    assert np.argwhere(square).min(axis=0).tolist() == [1, 2], "pixel 2 begins at 2 and ends at 3"
    assert load_mask(both.masks, 8).sum() == square.sum() + corner.sum()
    about = {"template": "Ultrasound image of a {label} thyroid", "classes": ["nodule", "cyst", "healthy"]}
    (root / "dataset.json").write_text(json.dumps(about | {"without": ["healthy"]}))
    both, boxed, bare = read_dataset(root)
    assert (both.label, boxed.label, bare.label) == ("nodule", "nodule", "healthy")
    assert (both.shows, bare.shows) == (True, False)
    (root / "dataset.json").write_text('{"classes": ["nodule"]}')
    reading = read_whole(root)
    assert "categories that dataset.json names as no class: Cyst" in reading.notes
    assert [record.label for record in reading.records] == ["nodule", "nodule", UNKNOWN]
    assert reading.records[0].structures == ("Cyst", "nodule")


def test_runs_of_coco_are_unpacked_compressed_or_not(tmp_path):
    packing = pytest.importorskip("pycocotools.mask", reason="the extra coco is not installed")
    path, mask = coco(tmp_path) / "annotations" / "instances_default.json", np.zeros((8, 8), np.uint8)
    mask[2:5, 1:7] = 1
    packed = packing.encode(np.asfortranarray(mask))
    flat = mask.T.ravel()  # down the columns
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    plain = [int(n) for n in np.diff(edges)]
    for counts in (packed["counts"].decode(), plain):
        table = json.loads(path.read_text())
        table["annotations"][0]["segmentation"] = {"size": [8, 8], "counts": counts}
        path.write_text(json.dumps(table))
        assert (np.asarray(open_mask(read_dataset(tmp_path)[0].masks[0])) // 255 == mask).all()
    table["images"][0]["width"] = 9
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="its runs are of 8x8 pixels"):
        open_mask(read_dataset(tmp_path)[0].masks[0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table["images"][0].pop("file_name"), r"is not COCO's JSON \(KeyError"),
        (lambda table: table["images"][0].update(file_name="../a.png"), r"'\.\./a\.png' is not a file in"),
        (lambda table: table["annotations"][0].update(category_id=9), r"is not COCO's JSON \(KeyError\(9\)\)"),
        (lambda table: table["images"].append(table["images"][0]), "is named by .* already"),
        (lambda table: table["images"].clear(), "names no image"),
    ],
)
def test_a_damaged_file_of_annotations_is_one_sentence(tmp_path, change, sentence):
    path = coco(tmp_path) / "annotations" / "instances_default.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=sentence) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_a_drawn_mask_has_a_digest_of_what_it_shows_wherever_its_file_lies(tmp_path):
    here = read_dataset(coco(tmp_path / "here"))
    there = read_dataset(shutil.copytree(tmp_path / "here", tmp_path / "there"))
    assert data_hash(here) == data_hash(there)
    path = tmp_path / "there" / "annotations" / "instances_default.json"
    path.write_text(path.read_text().replace("[2, 1, 6, 1", "[3, 1, 6, 1"))
    assert data_hash(here) != data_hash(read_dataset(tmp_path / "there"))


def test_the_text_beside_an_image_is_its_prompt_and_an_empty_one_is_refused(tmp_path):
    root = captions(tmp_path)
    assert [(r.prompt, len(r.masks)) for r in read_dataset(root)] == [("a scan of a", 1), ("a scan of b", 0)]
    (root / "b.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"b\.txt is empty"):
        read_dataset(root)
    (root / "b.txt").unlink()
    assert read_whole(root).notes == [
        "1 images have the prompt 'Ultrasound image': a template in dataset.json, or a .txt beside each, says more"
    ]


def test_folders_of_kohya_with_repeats_are_read_and_a_note_says_that_these_are_not(tmp_path):
    captions(tmp_path / "10_thyroid")
    captions(tmp_path / "2_heart")
    reading = read_whole(tmp_path)
    assert (reading.layout, len(reading.records)) == ("captions", 4)
    assert reading.notes == [
        "repeats of kohya's folders are not read (10_thyroid, 2_heart): give several --data with shares"
    ]


def test_a_folder_of_a_described_class_gives_it_and_one_that_is_misspelled_is_found(tmp_path):
    first, second = read_dataset(described(tmp_path))
    assert [(r.label, r.shows, len(r.masks)) for r in (first, second)] == [("benign", True, 1), ("healthy", False, 0)]
    assert second.prompt == "Ultrasound image of a healthy thyroid"
    save(tmp_path / "bening" / "z.png")
    with pytest.raises(ValueError, match=r"bening/z\.png, its folder: the class is 'bening'.*Write 'benign'"):
        read_dataset(tmp_path)


def test_class_folders_with_names_as_in_busi_may_be_of_any_described_organ(tmp_path):
    for label in ("cyst", "TI-RADS 4a"):
        save(tmp_path / label / f"{label} (1).png")
        save(tmp_path / label / f"{label} (1)_mask.png", WHITE)
    (tmp_path / "dataset.json").write_text('{"template": "a thyroid, {label}", "classes": ["cyst", "TI-RADS 4a"]}')
    reading = read_whole(tmp_path)
    assert reading.layout == "BUSI"
    assert [(r.label, r.prompt, r.shows, len(r.masks)) for r in reading.records] == [
        ("cyst", "a thyroid, cyst", True, 1),
        ("TI-RADS 4a", "a thyroid, TI-RADS 4a", True, 1),
    ]


def test_a_level_of_a_file_is_a_mask_and_two_levels_are_two(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0], pixels[1] = 1, 2
    Image.fromarray(pixels).save(tmp_path / "labels.png")
    first, second = (Structure(tmp_path / "labels.png", f"level {n}", levels=(n,)) for n in (1, 2))
    assert first.digest() != second.digest()
    assert load_mask([first, second], 4)[0, :, 0].tolist() == [1, 1, 0, 0]
    assert load_mask([second], 4)[0, :, 0].tolist() == [0, 1, 0, 0]


def test_a_description_of_a_set_that_is_known_to_show_breasts_is_not_read_and_a_note_says_so(tmp_path):
    (busbra(tmp_path) / "dataset.json").write_text('{"template": "a thyroid"}')
    reading = read_whole(tmp_path)
    assert "dataset.json is not read: BUS-BRA shows breasts" in reading.notes
    assert reading.records[0].prompt == "Ultrasound image of a malignant breast, from BUS-BRA"
