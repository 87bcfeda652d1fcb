"""Models, runs, folders and PNGs of before the settings were one JSON field: they verify, go on, resume, report."""

import json
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch

import sample
import train
from ldm_us.report.__main__ import main as report
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.fields import origin_fields
from tests.synthesis.conftest import contents

ARCHIVE = Path(__file__).parent / "old_files" / "old_files.tar.xz"
WEIGHTS = ("--weights", "runs/controlnet/model.safetensors")
EDITED = ("--init", "inputs/init.png")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The unpacked archive, as the current folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "old_files")
    return tmp_path / "old_files"


def call(main, *words):
    return run_command(partial(main, [str(word) for word in words]))


def test_every_old_picture_and_folder_verifies_with_the_files_it_was_made_with(old, capsys):
    """On another kind of processor than that of the archive, all but the rounding of a grey level."""
    made_with = {
        "class": (),
        "mask": ("--mask", "inputs/masks"),
        "options": (),
        "dataset": (),
        "inpaint/0000_malignant_seed3.png": (*EDITED, "--inpaint", "inputs/region.png"),
        "invert/0000_malignant_(1)_seed0.png": (*EDITED, "--source-mask", "inputs/source_mask.png"),
        "lora": ("--lora", "inputs/lora.safetensors"),
        "strength/0000_normal_seed5.png": EDITED,
        "also_control": ("--also-control", WEIGHTS[1], "inputs/hint.png", 1),
        "strips/0000_benign_(1)_seed8.png": (),
        "controlnet": ("--controlnet", WEIGHTS[1]),
    }
    for name, files in made_with.items():
        code = call(sample.main, *WEIGHTS, "--verify", f"samples/{name}", *files)
        said = capsys.readouterr().out
        elsewhere = "device" in said and "by up to 1" in said and "rounding" in said
        assert code == 0 or elsewhere, f"{name}: {said}"
    assert call(sample.main, *WEIGHTS, "--verify", "samples/strength/0000_normal_seed5.png") == 1
    assert "made with --init init.png" in capsys.readouterr().out


def test_an_old_folder_that_was_killed_goes_on_and_another_command_in_it_is_refused(old, capsys):
    command = old / "samples" / "unfinished" / "command.json"
    command.write_text(json.dumps(json.loads(command.read_text()) | origin_fields("cpu")))
    before = contents(old / "samples" / "unfinished")
    asked = ("--mask", "inputs/masks", "--layout", "busi", "--balance", 3, 2, 1, "--n", 6, "--seed", 10, "--batch", 2)
    assert call(sample.main, *WEIGHTS, *asked, "--steps", 3, "--out", "samples/unfinished") == 2
    assert "begun by another command (steps 4, not 3)" in capsys.readouterr().err
    assert contents(old / "samples" / "unfinished") == before
    assert call(sample.main, *WEIGHTS, *asked, "--steps", 4, "--out", "samples/unfinished") == 0
    after = contents(old / "samples" / "unfinished")
    kept = [name for name in before if name.endswith(").png") and after[name] == before[name]]
    assert len(kept) == 3  # of four: the kill tore the line of the last one
    assert after.keys() == contents(old / "samples" / "dataset").keys()
    assert call(sample.main, *WEIGHTS, "--verify", "samples/unfinished") == 0


def test_an_old_run_resumes_and_all_three_are_reported(old):
    before = (old / "runs" / "controlnet" / "log.jsonl").read_text()
    fixed = ("--data", "busi", "--batch", 2, "--warmup", 0, "--log-every", 1, "--held-out", 0.3, "--ema", 0.5)
    asked = (*fixed, "--sample-every", 4, "--validate-every", 2, "--lr", 0.3, "--steps", 6, "--out", "runs/controlnet")
    threads = torch.get_num_threads()
    assert call(train.main, "controlnet", "--weights", "runs/unet/model.safetensors", *asked) == 0
    assert torch.get_num_threads() == threads
    log = (old / "runs" / "controlnet" / "log.jsonl").read_text()
    assert log.startswith(before)
    assert {json.loads(line)["step"] for line in log[len(before) :].splitlines()} == {5, 6}
    assert call(report, "runs/vae", "runs/unet", "runs/controlnet", "--steps", 2, "--out", "report.html") == 0
    assert (old / "report.html").stat().st_size > 10_000
