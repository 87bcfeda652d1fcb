"""Audit of every layout, of several datasets at once, and of the split that train.py would make of them."""

import json
from functools import partial

import pytest
from PIL import Image

from ldm_us.data.__main__ import main
from ldm_us.data.audit.findings import audit_folder, audit_groups
from ldm_us.runtime.entry import run_command
from ldm_us.training.dataset import split_data
from tests.data.readers.test_datasets import MAKERS, breast, bus_uclm, busbra, busi, every_layout, save
from tests.data.test_near_duplicates import speckle


def audit(*arguments: object) -> int:
    """Run the command: its exit code."""
    return run_command(partial(main, ["audit", *map(str, arguments)]))


@every_layout
def test_every_layout_is_audited_under_its_name_with_nothing_to_mend(tmp_path, capsys, layout, make):
    assert audit(make(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{layout} in {tmp_path}: ")
    assert "groups (patients, cases or known families): " in printed
    assert "split with --held-out 0.1: train" in printed


def test_images_that_no_record_uses_are_listed(tmp_path, capsys):
    save(busbra(tmp_path / "busbra") / "Images" / "bus_9999-l.png")
    assert audit(tmp_path / "busbra", breast(tmp_path / "breast")) == 0
    printed = capsys.readouterr().out
    assert "\nleft out, .png in busbra/Images/: 1 (bus_9999-l.png)\n" in printed
    assert "\nleft out, masks of other findings: 1 (case001_other1.png)\n" in printed


def test_an_image_with_lesions_of_both_colours_is_named(tmp_path):
    assert audit_folder(bus_uclm(tmp_path)).found["both_lesions"] == ["ANAT_001.png"]


def test_mask_problems_are_found_in_every_layout(tmp_path, capsys):
    root = busbra(tmp_path)
    Image.new("1", (9, 9)).save(root / "Masks" / "mask_0001-l.png")
    save(root / "Masks" / "mask_0017-s.png", mode="1")
    (root / "Images" / "bus_0001-r.png").write_text("no image")
    assert audit(root) == 1
    printed = capsys.readouterr().out
    assert "lesion images whose masks are all empty: 2: bus_0001-l.png, bus_0017-s.png" in printed
    assert "mask size differs from the image: 1: mask_0001-l.png (9x9, image 8x8)" in printed
    assert "files that cannot be read: 1" in printed
    assert "split: train.py would refuse what cannot be used" in printed


@pytest.fixture
def copies(tmp_path):
    """A folder with a picture twice and once as benign, once as malignant, and BUSI with another copy of it."""
    root = tmp_path / "own"
    root.mkdir()
    lines = []
    for i, (seed, label) in enumerate([(1, "benign"), (1, "malignant"), (1, "benign"), (4, "benign"), (5, "benign")]):
        speckle(seed).save(root / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "x", "class": label, "group": f"p{i}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    benign = tmp_path / "busi" / "benign"
    benign.mkdir(parents=True)
    for n, seed in ((9001, 1), (9002, 7), (9003, 8)):
        speckle(seed).save(benign / f"benign ({n}).png")
    return [root, tmp_path / "busi"]


def test_families_within_and_across_datasets_are_counted_and_listed(copies, capsys):
    assert audit(*copies) == 0
    own, of_busi, both = capsys.readouterr().out.split("\n\n")
    assert "groups (patients, cases or known families): 5, the largest of 1 images" in own
    assert "near-duplicate families: 1, holding 3 images (2 surplus)\n  0.png, 1.png, 2.png\n" in own
    assert "families with conflicting classes: 1: [0.png, 1.png, 2.png]" in own
    assert "near-duplicate families: 0, holding 0 images (0 surplus)" in of_busi
    paths = [*(copies[0] / f"{i}.png" for i in range(3)), copies[1] / "benign" / "benign (9001).png"]
    assert f"near-duplicate families across datasets: 1\n  {', '.join(map(str, paths))}\n" in both


def test_the_split_is_that_of_train(copies, capsys):
    train, held_out = split_data(copies, 0.3)
    groups = audit_groups([audit_folder(folder) for folder in copies], 0.3)
    assert groups.train == {"benign": sum(r.label == "benign" for r in train), "malignant": 1}
    assert groups.held_out == {"benign": len(held_out)}
    assert audit(*copies, "--held-out", 0.3) == 0
    assert f"held out {len(held_out)} images ({len(held_out)} benign)" in capsys.readouterr().out


def test_long_lists_of_families_are_cut_unless_all_are_asked_for(tmp_path, capsys):
    lines = []
    for i in range(20):
        speckle(i % 10).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "x"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    audit(tmp_path)
    assert "  7.png, 17.png\n  and 2 more; --families lists all\n" in capsys.readouterr().out
    audit(tmp_path, "--families")
    printed = capsys.readouterr().out
    assert "  9.png, 19.png\n" in printed
    assert "more" not in printed


def test_one_folder_that_cannot_be_used_is_enough_for_exit_code_1_and_a_wrong_one_for_2(tmp_path, capsys):
    good, bad = busi(tmp_path / "good"), busi(tmp_path / "bad")
    (bad / "benign" / "benign (9001).png").write_text("no image")
    assert audit(good, bad) == 1
    assert audit(good, tmp_path / "none") == 2
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "bus_data.csv").write_text("ID,Case\n")
    assert audit(good, tmp_path / "table") == 2
    assert "has no column Pathology" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["-1", "1"])
def test_a_share_that_makes_no_sense_is_refused(tmp_path, capsys, share):
    assert audit(busi(tmp_path), f"--held-out={share}") == 2
    assert "Held-out fraction" in capsys.readouterr().err


def test_statistics_take_every_layout(tmp_path, capsys):
    for name, make in MAKERS.items():
        assert run_command(partial(main, ["statistics", str(make(tmp_path / name))])) == 0
        assert json.loads(capsys.readouterr().out)["images"] >= 1
