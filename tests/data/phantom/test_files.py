"""The phantom command: BUSI's layout with its oddities, the same bytes however many processes, all or nothing."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import ldm_us.data.phantom.files as files
from ldm_us.data.__main__ import main
from ldm_us.data.audit.findings import audit_folder, audit_groups
from ldm_us.data.phantom.files import Plan, phantom_of, write_phantoms
from ldm_us.data.readers.busi import read_busi
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.data.records import load_pair
from ldm_us.runtime.entry import run_command

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every class up to its tenth image."""
    out = tmp_path_factory.mktemp("phantoms") / "set"
    write_phantoms(Plan(n=30, size=SIZE, seed=5), out)
    return out


def digests(root):
    """SHA-256 of every file by its path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def phantom(*arguments):
    """Run the command: its exit code."""
    return run_command(lambda: main(["phantom", *map(str, arguments)]))


def test_the_reader_takes_it_and_every_record_loads(folder):
    records = read_busi(folder)
    assert Counter(record.label for record in records) == {"normal": 10, "benign": 10, "malignant": 10}
    for record in records:
        x, hint = load_pair(record, SIZE)
        assert x.shape == (3, SIZE, SIZE)
        assert bool(hint.any()) == (record.label != "normal")


def test_the_audit_finds_the_oddities_of_busi_and_nothing_to_mend(folder):
    audit = audit_folder(folder)
    (found,) = audit_groups([audit], 0.1).of_folder
    assert audit.usable
    assert audit.reading.left_out == {"made by ldm_us beside the images": [folder / "overview.png"]}
    assert not found.not_listed
    assert audit.image_modes == {"RGB": 30}
    assert audit.mask_modes == {"RGB": 10, "1": 20, "RGBA": 2}  # 20 lesion images, two of them with two masks
    assert audit.found["several_masks"] == ["benign (7).png (2)", "malignant (7).png (2)"]
    assert [len(family) for family in found.families] == [2, 2, 2]
    assert all(len({record.label for record in family}) == 1 for family in found.families)


def test_a_few_images_carry_a_coloured_mark(folder):
    colours = {}
    for path in folder.glob("*/*).png"):
        red, _, blue = np.moveaxis(np.asarray(Image.open(path)).astype(int), 2, 0)
        colours[path.stem] = bool((red != blue).any())
    assert sorted(stem for stem, coloured in colours.items() if coloured) == [
        "benign (5)",
        "malignant (5)",
        "normal (5)",
    ]


def test_near_duplicates_share_a_group_which_no_number_of_busi_does(folder):
    groups = {record.image.stem: record.group for record in read_busi(folder)}
    assert groups["benign (10)"] == groups["benign (9)"] != groups["benign (8)"]
    assert not any(group.startswith("busi:") for group in groups.values())
    pixels = [np.asarray(Image.open(folder / "benign" / f"benign ({n}).png").convert("L")) for n in (9, 10)]
    assert not np.array_equal(*pixels)


def test_a_smaller_set_and_more_processes_give_the_same_bytes(folder, tmp_path):
    write_phantoms(Plan(n=12, size=SIZE, seed=5), tmp_path / "set", workers=2)
    expected, found = digests(folder), digests(tmp_path / "set")
    assert len(found) > 24
    assert all(expected[name] == digest for name, digest in found.items() if "(" in name)


def test_the_folder_says_how_it_was_made(folder):
    info = json.loads((folder / "phantom.json").read_text())
    assert (info["n"], info["size"], info["seed"], info["calipers"], info["text"]) == (30, SIZE, 5, False, False)
    assert ["benign (9).png", "benign (10).png"] in info["families"]


@pytest.mark.parametrize("mark", ["calipers", "text"])
def test_marks_are_drawn_on_request_alone(folder, tmp_path, mark):
    write_phantoms(Plan(n=3, size=SIZE, seed=5, **{mark: True}), tmp_path / "set")
    before, after = digests(folder), digests(tmp_path / "set")
    changed = {name for name in after if "(1)" in name and before[name] != after[name]}
    lesions = {"benign/benign (1).png", "malignant/malignant (1).png"}
    assert changed == (lesions if mark == "calipers" else lesions | {"normal/normal (1).png"})


@pytest.mark.parametrize(
    ("marks", "of_lesions", "of_normal"),
    [
        (("calipers", "text"), ", calipers, text", ", text"),
        (("calipers",), ", calipers", ""),
        (("text",), ", text", ", text"),
    ],
)
def test_marked_phantoms_come_with_captions_that_name_the_marks_and_with_all_that_read_busi_knows(
    tmp_path, marks, of_lesions, of_normal
):
    out = tmp_path / "set"
    write_phantoms(Plan(n=30, size=16, seed=5, **dict.fromkeys(marks, True)), out)
    records, plain = read_dataset(out), read_busi(out)
    assert len(records) == 30
    for record, before in zip(records, plain, strict=True):
        added = of_normal if before.label == "normal" else of_lesions
        assert record.prompt == f"Ultrasound image of a {before.label} breast{added}"
        assert (record.image, record.masks, record.label) == (before.image, before.masks, before.label)
    families = [[a.group == b.group for b in group] for group in (records, plain) for a in group]
    assert families[:30] == families[30:]
    assert audit_folder(out).usable


def test_phantoms_without_marks_have_no_captions(folder):
    assert not (folder / "metadata.jsonl").exists()
    assert read_dataset(folder) == read_busi(folder)


def test_overwrite_replaces_captions_too(tmp_path):
    out = tmp_path / "set"
    assert phantom("--n", 3, "--size", SIZE, "--text", "--out", out) == 0
    assert phantom("--n", 3, "--size", SIZE, "--out", out, "--overwrite") == 0
    assert not (out / "metadata.jsonl").exists()


def test_some_images_have_three_lesions():
    assert len(phantom_of(Plan(n=300, size=64, seed=0), "benign", 27).masks) == 3


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--n", 0), "--n 0: use 1 or more"),
        (("--size", 8), "--size 8: use 16 to 2048 pixels"),
        (("--size", 4096), "--size 4096"),
        (("--workers", 0), "--workers 0"),
        (("--seed", -1), "-1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_nothing_written(tmp_path, capsys, flags, sentence):
    assert phantom("--out", tmp_path / "set", "--n", 3, *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert phantom("--n", 3, "--size", SIZE, "--out", tmp_path) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert phantom("--n", 3, "--size", SIZE, "--out", tmp_path, "--overwrite") == 2
    assert "was not made here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwrite_replaces_an_older_set_as_a_whole(tmp_path, capsys):
    out = tmp_path / "set"
    assert phantom("--n", 6, "--size", SIZE, "--out", out) == 0
    assert phantom("--n", 3, "--size", SIZE, "--out", out, "--overwrite") == 0
    assert len(read_busi(out)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_overwrite_refuses_a_folder_with_anything_else_in_it(tmp_path, capsys):
    out = tmp_path / "set"
    assert phantom("--n", 3, "--size", SIZE, "--out", out) == 0
    (out / "runs").mkdir()
    before = digests(out)
    assert phantom("--n", 3, "--size", SIZE, "--out", out, "--overwrite") == 2
    assert "holds runs besides phantoms" in capsys.readouterr().err
    assert digests(out) == before


def test_overwrite_refuses_the_folder_that_one_is_in(tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"
    assert phantom("--n", 3, "--size", SIZE, "--out", out) == 0
    before = digests(out)
    monkeypatch.chdir(out)
    assert phantom("--n", 3, "--size", SIZE, "--out", ".", "--overwrite") == 2
    assert "the folder that you are in" in capsys.readouterr().err
    assert digests(out) == before


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "overview", fail)
    assert phantom("--n", 3, "--size", SIZE, "--out", tmp_path / "set") == 2
    assert not any(tmp_path.iterdir())


def test_a_damaged_description_is_refused_by_the_reader(tmp_path):
    (tmp_path / "normal").mkdir()
    (tmp_path / "phantom.json").write_text("{}")
    with pytest.raises(ValueError, match=r"phantom\.json is damaged"):
        read_busi(tmp_path)


def test_statistics_are_printed_as_json(folder, capsys):
    assert run_command(lambda: main(["statistics", str(folder)])) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 30
    assert set(figures["lesions"]) == {"benign", "malignant"}
