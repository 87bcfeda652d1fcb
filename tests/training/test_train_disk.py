"""train.py on a disk that is full or read-only: exit code 2, one sentence, the last good state intact and resumable."""

import contextlib
import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

RHYTHM = ("--steps", 4, "--save-every", 2, "--validate-every", 2, "--held-out", 0.3)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    """An uninterrupted run."""
    return run("vae", tmp_path_factory.mktemp("straight") / "run", *RHYTHM)


@pytest.fixture(scope="module")
def half(run, tmp_path_factory):
    """The first half of that run."""
    return run("vae", tmp_path_factory.mktemp("half") / "run", "--steps", 2, *RHYTHM[2:])


def assert_same(a, b):
    assert all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())
    logs = [
        [{k: v for k, v in line.items() if k not in ("images_per_s", "data_share")} for line in result.log]
        for result in (a, b)
    ]
    assert logs[0] == logs[1]


def states(out):
    return {path.name: path.read_bytes() for path in (out / "state").iterdir()}


@contextlib.contextmanager
def refusing(match, error_number, monkeypatch):
    """Inside, opening a file for writing fails where `match` says so of its path."""

    def refusing_open(path, mode="r"):
        if mode[0] in "wa" and match(Path(path)):
            raise OSError(error_number, os.strerror(error_number), str(path))
        return open(path, mode)

    with monkeypatch.context() as patch:
        for module in ("ldm_us.files.atomic", "ldm_us.training.log"):
            patch.setattr(f"{module}.open", refusing_open, raising=False)
        yield


def test_a_disk_that_is_full_at_a_line_of_the_log_is_named_and_the_run_goes_on_when_there_is_room(
    run, refused, out, straight, monkeypatch
):
    """The line of step 3, the fifth of the log: those of step 0, 1, 2 and the validation of 2 came before it."""
    written = []

    class FullFile(io.FileIO):
        def write(self, data):
            written.append(data)
            if len(written) == 5:
                super().write(data[:30])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr("ldm_us.training.log.open", FullFile, raising=False)
        sentence = refused("vae", out, *RHYTHM)
    assert sentence == f"{out / 'log.jsonl'}: No space left on device."
    assert list(states(out)) == ["step_00000002.pt"]
    assert not (out / "log.jsonl").read_bytes().endswith(b"\n")
    assert_same(run("vae", out, *RHYTHM), straight)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("state/step_00000002.pt", []),
        ("curves.png", ["step_00000002.pt"]),
        ("state/step_00000004.pt", ["step_00000002.pt"]),
    ],
)
def test_a_disk_that_is_full_at_a_state_or_at_the_curves_leaves_what_was_saved_and_the_run_goes_on(
    run, refused, out, straight, full_disk, monkeypatch, name, kept
):
    with monkeypatch.context() as patch:
        full_disk(Path(name).name, 2000, patch)
        sentence = refused("vae", out, *RHYTHM)
    assert sentence == f"{out / name}: No space left on device."
    assert list(states(out)) == kept
    assert not (out / "model.safetensors").exists()
    assert_same(run("vae", out, *RHYTHM), straight)


@pytest.mark.parametrize("error_number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize(("folder", "named"), [("", "log.jsonl"), ("state", "step_00000004.pt")])
def test_a_folder_that_became_unwritable_is_named_and_the_states_in_it_are_not_touched(
    run, refused, out, straight, half, monkeypatch, folder, named, error_number
):
    shutil.copytree(half.out, out)
    before = states(out)
    with refusing(lambda path: path.parent == out / folder, error_number, monkeypatch):
        sentence = refused("vae", out, *RHYTHM)
    assert sentence.endswith(f"{named}: {os.strerror(error_number)}.")
    assert "\n" not in sentence
    assert states(out) == before
    again = run("vae", out, *RHYTHM)
    assert {line["step"] for line in again.log} == {0, 1, 2, 3, 4}
    assert_same(again, straight)


@pytest.mark.skipif(os.geteuid() == 0, reason="no folder is read-only for root")
def test_a_folder_without_the_right_to_write_is_named(run, refused, out):
    run("vae", out, *RHYTHM)
    before = states(out)
    out.chmod(0o555)
    try:
        assert "Permission denied" in refused("vae", out, "--steps", 6, *RHYTHM[2:])
    finally:
        out.chmod(0o755)
    assert states(out) == before
