"""--tensorboard: the points of TensorBoard are those of log.jsonl, after kills and resumes too."""

import json
import sys
from contextlib import closing
from types import ModuleType

import pytest

import train
from ldm_us.training.log import Log


class Folder:
    """What TensorBoard would show of a folder: writers in their order, each hiding what it purges of those before."""

    def __init__(self, monkeypatch):
        self.shown, self.closed = {}, 0
        module = ModuleType("torch.utils.tensorboard")
        folder = self

        class SummaryWriter:
            def __init__(self, log_dir, purge_step=None):
                folder.path = log_dir
                for points in folder.shown.values() if purge_step is not None else ():
                    points[:] = [point for point in points if point[0] < purge_step]

            def add_scalar(self, tag, value, step):
                folder.shown.setdefault(tag, []).append((step, value))

            def close(self):
                folder.closed += 1

        module.SummaryWriter = SummaryWriter
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


@pytest.fixture
def folder(monkeypatch):
    return Folder(monkeypatch)


def points_of(lines):
    names = {name for line in lines for name in line} - {"step"}
    return {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_tensorboard_shows_every_value_of_the_log(run, tmp_path, folder, stage):
    result = run(stage, tmp_path / "run", "--steps", 3, "--validate-every", 2, "--held-out", 0.5, "--tensorboard")
    assert folder.path == str(tmp_path / "run" / "tensorboard")
    assert folder.shown == points_of(result.log)
    assert {line["step"] for line in result.log} == {0, 1, 2, 3}
    assert folder.closed == 1


class PowerCutError(Exception):
    """What no code of ours catches."""


def test_a_killed_and_resumed_run_has_each_point_once_and_none_that_the_log_has_not(run, tmp_path, folder, monkeypatch):
    flags = ("--steps", 5, "--save-every", 2, "--validate-every", 1, "--tensorboard")

    def die(run, where, values):
        if where == "step 4":
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(train, "check_finite", die)
        with pytest.raises(PowerCutError):
            run("unet", tmp_path / "run", *flags)
    assert folder.shown["loss"][-1][0] == 3, "a step after the newest state"
    result = run("unet", tmp_path / "run", *flags)
    assert folder.shown == points_of(result.log)
    run("unet", tmp_path / "run", *flags)
    assert folder.shown == points_of(result.log), "a finished run started again adds nothing"


def test_points_that_a_killed_run_never_sent_are_sent_by_the_next(tmp_path, folder):
    lines = [{"step": step, "loss": 0.1 * step} for step in range(4)]
    rows = [json.dumps(line) + "\n" for line in lines]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(rows[:3]) + rows[3][:5])
    with closing(Log(tmp_path, 2, tensorboard=True)):
        assert folder.shown == points_of(lines[:3]), "half a row is no line"
    path.write_text("".join(rows[:2]))
    with closing(Log(tmp_path, 1, tensorboard=True)) as log:
        assert folder.shown == points_of(lines[:2])
        for line in lines[2:]:
            log.write(line)
            assert folder.shown == points_of(lines[: line["step"] + 1])
    assert path.read_text() == "".join(rows)


def test_the_option_is_no_part_of_what_a_run_is(run, tmp_path, folder):
    run("vae", tmp_path / "run", "--steps", 2)
    assert not folder.shown
    result = run("vae", tmp_path / "run", "--steps", 4, "--tensorboard")
    assert folder.shown == points_of(result.log)


def test_without_the_extra_one_sentence_names_it_before_anything_is_written(refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sentence = refused("vae", tmp_path / "run", "--tensorboard")
    assert sentence.startswith("--tensorboard: TensorBoard is not installed.")
    assert "the extra logs" in sentence
    assert ".[logs]" in sentence
    assert not (tmp_path / "run").exists()


def test_without_the_option_tensorboard_is_not_imported(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run("vae", tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_writer_is_closed_when_training_fails(run, tmp_path, folder, monkeypatch):
    def die(run, where, values):
        raise PowerCutError

    monkeypatch.setattr(train, "check_finite", die)
    with pytest.raises(PowerCutError):
        run("vae", tmp_path / "run", "--tensorboard")
    assert folder.closed == 1
