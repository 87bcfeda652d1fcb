"""A folder is read as one layout, whole: what no record uses is named by kind, and more than a few are refused."""

import json
from pathlib import Path

import pytest

from ldm_us.data.readers.datasets import read_dataset, read_datasets, read_whole
from ldm_us.data.readers.left_out import too_many
from tests.data.readers.test_busi import names, touch
from tests.data.readers.test_datasets import MAKERS, every_layout


def many(root: Path, classes: tuple[str, ...] = ("benign", "malignant", "normal"), n: int = 8) -> Path:
    """BUSI's layout with n images a class, each with its mask."""
    ends = (".png", "_mask.png")
    return touch(root, *(f"{c}/{c.lower()} ({i}){end}" for c in classes for i in range(1, n + 1) for end in ends))


def refusal(root: Path) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises(ValueError, match="would be read") as error:
        read_whole(root)
    assert "\n" not in str(error.value)
    return str(error.value)


@every_layout
def test_every_layout_as_published_leaves_out_nothing_but_what_it_means_to(tmp_path, layout, make):
    left_out = read_whole(make(tmp_path)).left_out
    assert {kind: names(paths) for kind, paths in left_out.items()} == (
        {"masks of other findings": ["case001_other1.png"]} if layout == "BrEaST" else {}
    )


@pytest.mark.parametrize("stray", ["benign/1.png", "benign/000001.png", "malignant/7.png"])
def test_one_stray_number_makes_no_other_dataset_of_busi(tmp_path, stray):
    before = read_dataset(many(tmp_path))
    reading = read_whole(touch(tmp_path, stray))
    assert (reading.layout, reading.records) == ("BUSI", before)
    assert [path for paths in reading.left_out.values() for path in paths] == [tmp_path / stray]


def test_the_same_number_in_two_classes_of_busi_is_no_reason_to_refuse_it(tmp_path):
    touch(many(tmp_path), "benign/1.png", "malignant/1.png")
    assert len(read_dataset(tmp_path)) == 24


@pytest.mark.parametrize("normal", ["normal", "Normal"])
def test_numbered_images_of_three_classes_never_lose_the_class_normal(tmp_path, normal):
    touch(tmp_path, *(f"{label}/{i}.png" for i, label in enumerate(("benign", "malignant", normal))))
    with pytest.raises(ValueError, match=r"no image in benign and malignant and normal\. Add files named like 'benign"):
        read_dataset(tmp_path)


def test_a_folder_that_mixes_two_layouts_is_refused_with_what_each_would_leave_out(tmp_path):
    sentence = refusal(touch(many(tmp_path, ("benign", "malignant")), *(f"benign/{i}.png" for i in range(9))))
    assert "as dataset B: 9 images, without .png in " in sentence
    assert "as BUSI: 16 images, without .png in " in sentence
    assert "/benign/: 9 (0.png, 1.png, 2.png, ...)" in sentence


def test_metadata_without_masks_do_not_hide_those_of_a_folder(tmp_path):
    (many(tmp_path) / "metadata.csv").write_text("file_name,text\nbenign/benign (1).png,a cyst\n")
    sentence = refusal(tmp_path)
    assert "as imagefolder: 1 images, without masks that no line names: 24 (benign (1)_mask.png" in sentence
    assert sentence.endswith("Name them in a column mask, or move them away.")


@pytest.mark.parametrize("mask", ["images/{}_mask.png", "images/{}_m.png", "masks/{}.png"])
def test_metadata_choose_among_images_but_a_mask_of_a_listed_image_is_listed_too(tmp_path, mask):
    """8 images with their masks, of which five are listed: with all of their masks, with one of them, with none."""
    touch(tmp_path, *(name.format(i) for i in range(8) for name in ("images/{}.png", mask)))
    lines = [{"file_name": f"images/{i}.png", "text": "a cyst", "mask": mask.format(i)} for i in range(5)]
    for line in lines:
        (tmp_path / line["mask"]).write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    reading = read_whole(tmp_path)
    assert len(reading.records) == 5
    assert {kind: len(paths) for kind, paths in reading.left_out.items()} == {"pictures that no line names": 6}
    for line in lines[1:]:
        del line["mask"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "masks that no line names: 4 (1" in refusal(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "images/0.png", "text": "a cyst"}))
    assert "masks that no line names: 8 (0" in refusal(tmp_path)


def test_a_few_pictures_too_many_are_named_by_kind_and_more_are_refused(tmp_path):
    """Another class, and images beside the class folders."""
    touch(many(tmp_path), "cyst/cyst (1).png", "benign (9).png")
    kinds = {kind.replace(tmp_path.name, "ROOT"): names(paths) for kind, paths in read_whole(tmp_path).left_out.items()}
    assert kinds == {".png in ROOT/cyst/": ["cyst (1).png"], ".png in ROOT/": ["benign (9).png"]}
    touch(tmp_path, "cyst/cyst (2).JPG")
    sentence = refusal(tmp_path)
    for part in ("/cyst/: 1 (cyst (1).png), .JPG in ", "/cyst/: 1 (cyst (2).JPG)", "/: 1 (benign (9).png)"):
        assert part in sentence


def test_links_to_masks_that_are_gone_are_their_own_kind(tmp_path):
    many(tmp_path)
    for n in range(1, 4):
        mask = tmp_path / "benign" / f"benign ({n})_mask.png"
        mask.unlink()
        mask.symlink_to(tmp_path / "store" / mask.name)
    assert "links to files that are gone: 3 (benign (1)_mask.png" in refusal(tmp_path)


def test_files_in_linked_folders_are_seen_and_a_link_in_a_circle_ends(tmp_path):
    many(tmp_path / "store")
    root = tmp_path / "set"
    root.mkdir()
    for label in ("benign", "malignant", "normal"):
        (root / label).symlink_to(tmp_path / "store" / label)
    (tmp_path / "store" / "benign" / "again").symlink_to(tmp_path / "store" / "benign")
    touch(tmp_path / "store", "benign/benign (1)_masks.png")
    assert names(read_whole(root).left_out[".png in set/benign/"]) == ["benign (1)_masks.png"]


def test_texts_tables_and_hidden_files_are_not_left_out_and_other_files_are_no_reason_to_refuse(tmp_path):
    touch(many(tmp_path), "LICENSE", "notes.txt", "table.xlsx", ".cache/a.png", "__MACOSX/benign/a.png")
    touch(tmp_path, *(f"volumes/{i}.nii" for i in range(9)))
    assert {kind: len(paths) for kind, paths in read_whole(tmp_path).left_out.items()} == {"not pictures": 9}


@pytest.mark.parametrize(("left", "images", "refused"), [(2, 1, False), (3, 8, True), (5, 100, False), (6, 100, True)])
def test_few_are_two_or_one_in_twenty(left, images, refused):
    assert too_many({"a": [Path("a")] * (left - 1), "b": [Path("b")]}, images) == refused
    assert not too_many({"not pictures": [Path("a")] * 99}, images)


def test_one_dataset_is_refused_twice_by_whichever_paths_it_is_named(tmp_path):
    inner = MAKERS["BUSI"](tmp_path / "outer" / "inner")
    MAKERS["BUS-BRA"](tmp_path / "other")
    (tmp_path / "link").symlink_to(inner)
    lines = [{"file_name": f"inner/benign/benign (9001){end}", "text": "x"} for end in (".png", "_mask.png")]
    for second in (inner, tmp_path / "other" / ".." / "outer" / "inner", tmp_path / "outer", tmp_path / "link"):
        with pytest.raises(ValueError, match=r"hold the same files \(benign \(9001\)\.png among them\)\. Give each"):
            read_datasets([tmp_path / "other", inner, second])
    assert len(read_datasets([tmp_path / "other", inner])) == 6
    (inner / "normal").rename(inner / ".normal")
    (inner / "malignant").rename(inner / ".malignant")
    (tmp_path / "outer" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"outer and .*inner hold the same files"):
        read_datasets([tmp_path / "outer", inner])
