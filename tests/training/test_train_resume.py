"""train.py: the same command again goes on as if it had never stopped, bit for bit."""

import json
import shutil

import pytest
import torch

import train
from tests.conftest import read_run

SPEED = {"images_per_s", "data_share"}  # all that two equal runs may differ in
RUNS = {"vae": (), "unet": (), "unet with text": ("--train-text",), "controlnet": ()}
START = {"vae": None, "unet": "vae", "controlnet": "unet"}


@pytest.fixture(params=RUNS)
def long_run(request, run, chain):
    """A function of folder and steps: train this stage with a state every two steps."""
    stage = request.param.split()[0]
    weights = None if START[stage] is None else chain[START[stage]].path

    def call(out, steps):
        flags = ("--steps", steps, "--save-every", 2, "--warmup", 3, "--ema", 0.9, "--caption-dropout", 0.5)
        return run(stage, out, *flags, *RUNS[request.param], weights=weights)

    return call


def assert_same(a, b):
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())
    logs = [[{k: v for k, v in line.items() if k not in SPEED} for line in result.log] for result in (a, b)]
    assert logs[0] == logs[1]


def test_stopped_resumed_and_killed_runs_end_where_an_uninterrupted_run_ends(long_run, tmp_path, monkeypatch):
    straight = long_run(tmp_path / "straight", 4)
    assert [line["step"] for line in straight.log] == [1, 2, 3, 4]

    long_run(tmp_path / "stopped", 2)
    torch.manual_seed(1)
    assert_same(long_run(tmp_path / "stopped", 4), straight)

    with monkeypatch.context() as patch:  # dies in step 4, after step 3 changed the weights and was logged
        patch.setattr(train, "check_finite", die_at_step_4)
        with pytest.raises(PowerCutError):
            long_run(tmp_path / "killed", 4)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert [path.name for path in (tmp_path / "killed" / "state").iterdir()] == ["step_00000002.pt"]
    torch.manual_seed(2)
    assert_same(long_run(tmp_path / "killed", 4), straight)


class PowerCutError(Exception):
    """What no code of ours catches."""


def die_at_step_4(run, where, values):
    if where == "step 4":
        raise PowerCutError


@pytest.fixture(scope="module")
def four_steps(run, tmp_path_factory):
    """A run of the autoencoder of four steps with states at 2 and 4, to be read only."""
    return run("vae", tmp_path_factory.mktemp("four_steps") / "run", "--steps", 4, "--save-every", 2)


@pytest.fixture
def stopped(four_steps, tmp_path):
    """The same, to be gone on with."""
    return read_run(shutil.copytree(four_steps.out, tmp_path / "run"))


def test_a_finished_run_started_again_changes_nothing(run, stopped, drawn_curves):
    before = {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()}
    run("vae", stopped.out, "--steps", 4, "--save-every", 2)
    assert {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()} == before


def test_a_damaged_newest_state_costs_the_steps_since_the_one_before(run, stopped):
    (stopped.out / "state" / "step_00000004.pt").write_bytes(b"PK\x03\x04 torn")
    (stopped.out / "model.safetensors").unlink()
    again = run("vae", stopped.out, "--steps", 4, "--save-every", 2)
    assert_same(again, stopped)


def test_when_all_states_are_damaged_the_run_is_not_silently_started_again(refused, stopped):
    for path in (stopped.out / "state").iterdir():
        path.write_bytes(b"")
    before = stopped.path.read_bytes()
    sentence = refused("vae", stopped.out, "--steps", 4, "--save-every", 2)
    assert "step_00000004.pt" in sentence
    assert "step_00000002.pt" in sentence
    assert stopped.path.read_bytes() == before


def test_a_leftover_of_a_killed_write_is_removed(run, stopped):
    leftovers = [stopped.out / folder / ".x.pt.123.tmp" for folder in ("", "state", "samples")]
    for path in leftovers:
        path.write_bytes(b"half")
    run("vae", stopped.out, "--steps", 4, "--save-every", 2)
    assert not any(path.exists() for path in leftovers)


def test_fewer_steps_than_the_run_has_made_are_refused(refused, stopped):
    """Else the result would say 2 steps and hold the weights of 4."""
    before = stopped.path.read_bytes()
    sentence = refused("vae", stopped.out, "--steps", 2, "--save-every", 2)
    assert "is at step 4, beyond the 2 asked for" in sentence
    assert stopped.path.read_bytes() == before


def test_another_rhythm_of_saving_and_logging_is_the_same_run(run, stopped):
    result = run("vae", stopped.out, "--steps", 5, "--save-every", 3, "--log-every", 5)
    assert result.log[-1]["step"] == 5


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--batch", 4), "images_per_step was 2, is 4"),
        (("--lr", 0.5, "--no-flip"), "flip was True, is False; lr was 0.001, is 0.5"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused_and_the_difference_named(refused, stopped, flags, named):
    before = {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()}
    sentence = refused("vae", stopped.out, *flags, "--steps", 6)
    assert named in sentence
    assert str(stopped.out) in sentence
    assert {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()} == before


def test_other_images_in_the_same_data_folder_are_refused(run, refused, own_busi, tmp_path):
    run("vae", tmp_path / "run", data=own_busi)
    for path in own_busi.glob("*/*_mask.png"):
        path.unlink()
    assert "data_sha256" in refused("vae", tmp_path / "run", "--steps", 4, data=own_busi)


def test_another_stage_in_the_same_folder_is_refused(refused, stopped):
    assert "stage was vae, is unet" in refused("unet", stopped.out, "--steps", 4)


def test_config_json_is_the_same_after_a_resume(run, stopped):
    before = json.loads((stopped.out / "config.json").read_text())
    run("vae", stopped.out, "--steps", 5)
    assert json.loads((stopped.out / "config.json").read_text()) == before


def test_other_weights_under_the_name_that_the_run_started_from_are_refused(run, refused, chain, tmp_path):
    weights = tmp_path / "start.safetensors"
    shutil.copy(chain["vae"].path, weights)
    run("unet", tmp_path / "run", weights=weights)
    shutil.copy(chain["unet"].path, weights)
    assert "parent_sha256" in refused("unet", tmp_path / "run", "--steps", 4, weights=weights)
