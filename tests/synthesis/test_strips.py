"""sample.py --trajectory and --explain: strips named after their samples, listed, and no samples."""

import json
from collections import Counter

import pytest
from PIL import Image

from ldm_us.data.audit.findings import audit_folder
from ldm_us.data.readers.busi import read_busi
from tests.synthesis.conftest import contents

TWO = ("--class", "benign", "--class", "malignant", "--n", 2)


def lines(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_two_classes_of_two_seeds_have_four_strips_that_tell_them_apart(run, tmp_path):
    run(tmp_path / "out", *TWO, "--trajectory")
    written = contents(tmp_path / "out")
    names = [
        f"000{row}_{label}_seed{s}_trajectory.png" for row, label in enumerate(("benign", "malignant")) for s in (0, 1)
    ]
    assert [line["strips"] for line in lines(tmp_path / "out")] == [[name] for name in names]
    assert len({written[name] for name in names}) == 4


def test_in_the_layout_of_busi_strips_lie_beside_the_classes_and_the_reader_takes_the_folder(run, masks, tmp_path):
    out = tmp_path / "out"
    run(out, "--mask", masks, "--balance", 1, 1, 1, "--n", 3, "--layout", "busi", "--trajectory", "--explain")
    strips = Counter(path.name.rpartition("_")[2] for path in (out / "strips").iterdir())
    assert strips == {"trajectory.png": 3, "attention.png": 3, "control.png": 3}
    assert len(read_busi(out)) == 3
    assert set(audit_folder(out).reading.left_out) == {"made by ldm_us beside the images"}


def test_a_strip_and_the_grid_say_that_they_are_synthetic_and_no_samples(run, weights, refused, tmp_path, capsys):
    out = tmp_path / "out"
    run(out, *TWO, "--trajectory")
    for name, shows in (("grid.png", "the first samples"), ("0000_benign_seed1_trajectory.png", "trajectory of 0000_")):
        with Image.open(out / name) as picture:
            assert "not for diagnosis" in picture.text["synthetic"]
            assert len(picture.text["weights_sha256"]) == 64
            assert picture.text["shows"].startswith(shows)


def test_what_a_folder_has_no_strips_for_is_another_command(run, refused, tmp_path):
    run(tmp_path / "out", *TWO)
    assert 'begun by another command (strips none, not ["trajectory"])' in refused(
        tmp_path / "out", *TWO, "--trajectory"
    )


def test_a_strip_that_was_deleted_is_made_again_and_overwrite_leaves_none(run, tmp_path):
    out = tmp_path / "out"
    run(out, *TWO, "--trajectory")
    before = contents(out)
    (out / "0001_malignant_seed0_trajectory.png").unlink()
    run(out, *TWO, "--trajectory")
    assert contents(out) == before
    run(out, *TWO, "--overwrite")
    assert not list(out.glob("*trajectory*"))


@pytest.mark.parametrize("layout", ["flat", "busi"])
def test_overwrite_leaves_no_folder_of_strips(run, tmp_path, layout):
    out = tmp_path / "out"
    run(out, "--class", "normal", "--layout", layout, "--trajectory")
    run(out, "--class", "normal", "--layout", layout, "--overwrite")
    assert not (out / "strips").exists()
