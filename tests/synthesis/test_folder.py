"""A dataset of samples: readers take it, and killed anywhere, shared by processes or resumed it is the same files."""

import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.data.audit.findings import audit_folder
from ldm_us.data.readers.busi import read_busi
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.diffusion.ddpm import on_device
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.folder import occupied
from tests.synthesis.conftest import contents
from tests.training.test_train_kills import dies_writing, forked, wait

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process with threads for a GPU cannot be forked"),
]
N = 13


@pytest.fixture(scope="module")
def command(weights, masks):
    """A function of --out and further options: a dataset of 13 samples in the layout of BUSI."""

    def build(out, *options):
        asked = ["--mask", masks, "--balance", 3, 2, 1, "--n", N, "--layout", "busi", "--steps", 1, "--batch", 2]
        return [str(word) for word in ["--weights", weights, "--device", "cpu", "--out", out, *asked, *options]]

    return build


@pytest.fixture(scope="module")
def straight(command, tmp_path_factory):
    """The folder of an uninterrupted call, the files in it, and the seconds it took."""
    out, started = tmp_path_factory.mktemp("straight") / "out", time.perf_counter()
    assert wait(start(command(out))) == 0
    return out, contents(out), time.perf_counter() - started


start = partial(forked, sample.main)


def images_in(out):
    return [path for path in out.rglob("*.png") if path.parent != out and "_mask" not in path.name]


def test_the_reader_of_busi_takes_what_was_written(straight, masks):
    out, _, _ = straight
    records = read_busi(out)
    assert Counter(record.label for record in records) == {"benign": 7, "malignant": 4, "normal": 2}
    assert read_dataset(out) == records
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(N))
    by_name = {line["file_name"]: line for line in lines}
    for record in records:
        line = by_name[record.image.relative_to(out).as_posix()]
        with Image.open(record.image) as picture, Image.open(*record.masks) as mask:
            assert (picture.mode, picture.size, mask.size) == ("L", (16, 16), (16, 16))
            assert set(np.unique(mask)) == ({0} if record.label == "normal" else {0, 255})
        assert line["class"] == record.label == record.image.parent.name
    found = audit_folder(out)
    assert found.usable
    assert found.found["normal_with_lesion"] == []
    assert all(one.share > 0 for one in found.covered)
    assert set(found.reading.left_out) <= {"made by ldm_us beside the images"}


def test_samples_of_one_mask_are_one_family_and_no_number_of_busi_joins_them(straight):
    out, _, _ = straight
    lines = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    masks = {Path(line["file_name"]).stem: line["mask_sha256"] for line in lines if line["class"] != "normal"}
    groups = {record.image.stem: record.group for record in read_busi(out)}
    for one in masks:
        for other in masks:
            assert (groups[one] == groups[other]) == (masks[one] == masks[other])
    assert groups["normal (1)"] != groups["normal (2)"]
    assert all(group.startswith("samples ") for group in groups.values())


@pytest.mark.parametrize("run", range(3))
def test_killed_at_random_moments_a_dataset_ends_as_if_never_killed(command, straight, tmp_path, run):
    _, expected, seconds = straight
    moments, out, code, kills, seen = random.Random(run), tmp_path / "out", None, 0, 0
    while code != 0:
        child = start(command(out))
        if kills < 4:
            time.sleep(moments.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        assert len(images_in(out)) >= seen, "no sample is ever lost"
        seen = len(images_in(out))
    assert contents(out) == expected


@pytest.mark.parametrize(
    ("name", "nth", "limit"),
    [
        ("command.json", 1, 30),
        ("benign (2).png", 1, 100),
        ("malignant (1)_mask.png", 1, 20),
        ("0.jsonl.part", 1, 100),
        ("0.jsonl.part", 1, 3000),
        ("manifest.jsonl", 1, 3000),
        ("samples.json", 1, 20),
        ("grid.png", 1, 100),
    ],
)
def test_killed_within_a_write_a_dataset_ends_as_if_never_killed(command, straight, tmp_path, name, nth, limit):
    out = tmp_path / "out"
    assert wait(start(command(out), dies_writing(name, nth, limit))) == -signal.SIGKILL
    assert wait(start(command(out))) == 0
    assert contents(out) == straight[1]


def test_killed_while_lists_are_merged_nothing_is_twice_and_nothing_missing(command, straight, tmp_path):
    out = tmp_path / "out"
    assert wait(start(command(out), dies_writing("malignant (3).png", 1, 100))) == -signal.SIGKILL
    assert wait(start(command(out), dies_writing("done.jsonl.part", 1, 1500))) == -signal.SIGKILL
    assert wait(start(command(out))) == 0
    assert contents(out) == straight[1]


def test_two_processes_write_the_files_of_one_and_one_goes_on_after_two(command, straight, tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    argv = [*TORCHRUN, "sample.py", *command(out)]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("13 images") == 1, "one process speaks"
    assert f"are in {out}, drawn on cpu\n" in done.stdout, "all are new"
    assert contents(out) == straight[1]


def test_what_was_deleted_is_made_again_and_the_rest_is_left_alone(command, straight, tmp_path):
    out = tmp_path / "out"
    assert run_command(lambda: sample.main(command(out))) == 0
    for name in ("benign/benign (3).png", "normal/normal (1)_mask.png", "grid.png"):
        (out / name).unlink()
    kept = (out / "benign" / "benign (1).png").stat().st_mtime_ns
    assert run_command(lambda: sample.main(command(out, "--batch", 5))) == 0
    assert contents(out) == straight[1]
    assert (out / "benign" / "benign (1).png").stat().st_mtime_ns == kept


def test_another_command_in_the_folder_is_refused_naming_what_differs(command, straight, capsys):
    out, expected, _ = straight
    assert run_command(lambda: sample.main(command(out, "--steps", 2, "--n", 20))) == 2
    assert "begun by another command (steps 1, not 2; counts [7, 4, 2], not [10, 7, 3])" in capsys.readouterr().err
    assert contents(out) == expected


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_while_another_call_writes_into_the_folder_nobody_else_may(command, straight, capsys, options):
    """Such as the processes of a torchrun that was killed itself, which go on without it."""
    out, expected, _ = straight
    with occupied(out):
        assert run_command(lambda: sample.main(command(out, *options))) == 2
    assert "another call of sample.py is writing into it" in capsys.readouterr().err
    assert contents(out) == expected
    assert run_command(lambda: sample.main(command(out))) == 0


def test_overwrite_begins_anew_and_leaves_no_sample_of_before(command, tmp_path):
    out = tmp_path / "out"
    for n in (9, 3):
        assert run_command(lambda n=n: sample.main(command(out, "--n", n, "--overwrite"))) == 0
    assert len(images_in(out)) == len(read_busi(out)) == 3


def test_three_times_the_samples_hold_no_more_pictures_in_memory(command, monkeypatch, tmp_path):
    original = sample.write_sample

    def counted(*words):
        original(*words)
        gc.collect()
        alive.append(sum(issubclass(type(each), Image.Image | torch.Tensor) for each in gc.get_objects()))

    monkeypatch.setattr(sample, "write_sample", counted)
    most = []
    for n in (2, 6):
        alive = []
        on_device.cache_clear()  # of the schedule, a few tables of each model
        assert run_command(lambda n=n: sample.main(command(tmp_path / str(n), "--n", n))) == 0
        assert len(alive) == n
        most.append(max(alive))
    assert most[0] == most[1]


@pytest.mark.parametrize("harm", [b"", b"\x89PNG\r\n\x1a\nrubbish"])
def test_a_file_that_is_empty_or_cut_off_is_made_again(command, straight, tmp_path, harm):
    out = tmp_path / "out"
    assert run_command(lambda: sample.main(command(out))) == 0
    for name in ("benign/benign (3).png", "malignant/malignant (1)_mask.png"):
        (out / name).write_bytes(harm and (out / name).read_bytes()[:-20])
    assert run_command(lambda: sample.main(command(out))) == 0
    assert contents(out) == straight[1]


NAMELESS = b'{"number": 1, "file_name": "a", "strips": [5]}'


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"\xff\xfe", b'{"number": 1}', b'{"number": "x", "file_name": "a"}', NAMELESS]
)
def test_a_damaged_line_is_one_sentence_and_its_sample_is_made_again_without_it(
    command, straight, tmp_path, capsys, line
):
    out = tmp_path / "out"
    assert run_command(lambda: sample.main(command(out))) == 0
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = line + b"\n"
    (out / "manifest.jsonl").write_bytes(b"".join(lines))
    capsys.readouterr()
    assert run_command(lambda: sample.main(command(out))) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{out / 'manifest.jsonl'}, line 5: damaged" in said
    del lines[4]
    (out / "manifest.jsonl").write_bytes(b"".join(lines))
    assert run_command(lambda: sample.main(command(out))) == 0
    assert contents(out) == straight[1]


def test_several_processes_need_a_folder(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(lambda: sample.main(["--n", "1"])) == 2
    assert "several processes need one folder: give --out" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "change"), [((), ""), (("--overwrite",), " and without --overwrite")])
def test_ctrl_c_while_samples_are_drawn_says_which_command_goes_on_and_that_counts_what_was_there(
    command, straight, tmp_path, monkeypatch, capsys, more, change
):
    out, drop_copies, batches = tmp_path / "out", sample.drop_copies, []

    def interrupted(*arguments):
        batches.append(arguments)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return drop_copies(*arguments)

    monkeypatch.setattr(sample, "drop_copies", interrupted)
    assert run_command(lambda: sample.main([*command(out), *more])) == 130
    monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"interrupted. The same command with --out {out}{change} goes on from there."
    assert run_command(lambda: sample.main(command(out))) == 0
    assert contents(out) == straight[1]
    assert re.search(r"; [1-9] of them were there already\n$", capsys.readouterr().out)
    assert run_command(lambda: sample.main(command(out))) == 0
    assert capsys.readouterr().out.endswith(f"are in {out}, drawn on cpu; 13 of them were there already\n")


def test_ctrl_c_while_weights_are_loaded_leaves_nothing_behind(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "load_sampler", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run_command(lambda: sample.main(command(tmp_path / "out"))) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "out").exists()
