"""train.py: the same command again goes on as if it had never stopped, bit for bit."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

import train
from ldm_us.runtime.entry import run_command
from ldm_us.training import run as run_module
from tests.conftest import read_run, write_busi

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


def test_a_run_that_is_at_its_end_says_so_and_stays_as_it_is(run, tmp_path, capsys):
    first = run("vae", tmp_path / "run", "--steps", 2)
    told = f"{tmp_path / 'run'}: 2 steps are there already"
    assert told not in capsys.readouterr().out
    assert_same(run("vae", tmp_path / "run", "--steps", 2), first)
    assert told in capsys.readouterr().out
    run("vae", tmp_path / "run", "--steps", 3)
    assert "steps are there already" not in capsys.readouterr().out


def test_ctrl_c_after_restart_does_not_say_that_the_same_command_goes_on(run, arguments, tmp_path, monkeypatch, capsys):
    run("vae", tmp_path / "run", "--steps", 2)
    monkeypatch.setattr(train, "check_finite", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    argv = arguments("vae", tmp_path / "run", "--steps", 2, "--restart")
    assert run_command(lambda: train.main(argv)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("interrupted. ") or " is saved at step 1. " in said
    assert said.endswith(". The same command without --restart goes on from there.")


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


def test_other_data_in_the_same_folder_are_refused_and_the_sentence_says_what_changed(run, refused, own_busi, tmp_path):
    run("vae", tmp_path / "run", "--held-out", 0, data=own_busi)

    def sentence():
        return refused("vae", tmp_path / "run", "--held-out", 0, "--steps", 4, data=own_busi)

    next(own_busi.glob("benign/*_mask.png")).unlink()
    assert "its training images are the same, but not all masks, prompts, classes, or their order" in sentence()
    Image.new("L", (32, 32), 7).save(own_busi / "benign" / "benign (9001).png")
    Image.new("L", (32, 32), 8).save(own_busi / "normal" / "normal (9501).png")
    next(own_busi.glob("malignant/*0?).png")).unlink()
    assert "of its 11 training images 2 are gone or changed, and 2 are new" in sentence()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["images"]  # as an older version wrote it
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "its training images or masks were others (or the split is another: near-duplicates" in sentence()


def test_another_stage_in_the_same_folder_is_refused(refused, stopped):
    assert "stage was vae, is unet" in refused("unet", stopped.out, "--steps", 4)


def test_config_json_is_the_same_after_a_resume(run, stopped):
    before = json.loads((stopped.out / "config.json").read_text())
    run("vae", stopped.out, "--steps", 5, "--save-every", 2)
    assert json.loads((stopped.out / "config.json").read_text()) == before


def test_other_weights_under_the_name_that_the_run_started_from_are_refused(run, refused, chain, tmp_path):
    weights = tmp_path / "start.safetensors"
    shutil.copy(chain["vae"].path, weights)
    run("unet", tmp_path / "run", weights=weights)
    shutil.copy(chain["unet"].path, weights)
    sentence = refused("unet", tmp_path / "run", "--steps", 4, weights=weights)
    assert "--weights is another file than the one it started from" in sentence


def test_a_run_goes_on_where_only_paths_changed_and_notes_the_new_ones(run, chain, own_busi, tmp_path, monkeypatch):
    """A job's scratch folder, a link, a relative path, the folder around it, weights that were moved."""
    places = {"scratch": tmp_path / "job 2" / "data", "link": tmp_path / "link", "around": tmp_path / "job 2"}
    shutil.copytree(own_busi, places["scratch"])
    places["link"].symlink_to(own_busi)
    weights = shutil.copy(chain["vae"].path, tmp_path / "start.safetensors")
    monkeypatch.chdir(tmp_path)
    places["relative"] = own_busi.relative_to(tmp_path)
    run("unet", tmp_path / "run", "--steps", 1, weights=chain["vae"].path, data=own_busi)
    before = json.loads((tmp_path / "run" / "config.json").read_text())
    for steps, place in enumerate(places.values(), start=2):
        result = run("unet", tmp_path / "run", "--steps", steps, weights=weights, data=place)
        after = json.loads((tmp_path / "run" / "config.json").read_text())
        assert after == before | {"data": [str(place)], "weights": str(weights)}
    straight = run("unet", tmp_path / "straight", "--steps", 5, weights=weights, data=own_busi)
    assert [line["step"] for line in result.log] == [1, 2, 3, 4, 5]
    assert_same(result, straight)


def test_shares_of_folders_belong_to_the_folders_whatever_their_paths_are(run, refused, own_busi, tmp_path):
    """An older run knows its folders by their paths alone."""
    out, config = tmp_path / "run", tmp_path / "run" / "config.json"
    here = [own_busi, write_busi(tmp_path / "own_more", seed=1)]
    moved = [shutil.copytree(folder, tmp_path / "moved" / folder.name) for folder in here]

    def flags(steps, folders):
        return ("--steps", steps, "--held-out", 0, "--data", *folders, "--data-weights", 1, 3)

    run("vae", out, *flags(2, here))
    run("vae", out, *flags(3, moved))
    assert "classes, or their order" in refused("vae", out, *flags(4, moved[::-1]))
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "folders_sha256"}))
    assert "data was" in refused("vae", out, *flags(4, here))
    run("vae", out, *flags(4, moved))


@pytest.mark.parametrize("lost", ["the folder", "the files", "the files of an unfinished run"])
def test_a_run_whose_states_were_deleted_is_refused_with_the_ways_on_and_stays_as_it_is(refused, stopped, lost):
    shutil.rmtree(stopped.out / "state")
    if lost != "the folder":
        (stopped.out / "state").mkdir()
    if lost == "the files of an unfinished run":
        stopped.path.unlink()
    before = {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()}
    sentence = refused("vae", stopped.out, "--steps", 6, "--save-every", 2)
    assert "is at step 4, but its states are gone" in sentence
    assert "--restart" in sentence
    assert (f"another --out with --weights {stopped.path}" in sentence) == stopped.path.exists()
    assert {path: path.read_bytes() for path in stopped.out.rglob("*") if path.is_file()} == before


def test_a_run_that_was_killed_before_its_first_state_begins_again(run, stopped):
    shutil.rmtree(stopped.out / "state")
    (stopped.out / "state").mkdir()
    (stopped.out / "log.jsonl").write_text(json.dumps({"step": 2, "loss": 1.0}) + "\n")
    stopped.path.unlink()
    assert_same(run("vae", stopped.out, "--steps", 4, "--save-every", 2), stopped)


def test_a_state_without_the_discriminator_is_refused_before_any_file_changes(run, refused, tmp_path):
    flags = ("--size", 24, "--adversarial", 0.5, "--steps", 2, "--save-every", 1)
    out = run("vae", tmp_path / "run", *flags).out
    newest = out / "state" / "step_00000002.pt"
    state = torch.load(newest, weights_only=True)
    del state["adversary"]
    torch.save(state, newest)
    shutil.copy(newest, out / "state" / "step_00000000.pt")  # an old one, which a resume deletes
    with open(out / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": 3, "loss": 1.0}) + "\n")  # beyond the state: a resume drops it
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "has no discriminator that fits" in refused("vae", out, *flags, "--steps", 4)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def notes_of(capsys):
    return [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("note: ")]


def test_a_run_whose_files_decode_otherwise_now_goes_on_with_a_note(run, stopped, capsys):
    config = stopped.out / "config.json"
    whole = json.loads(config.read_text())
    older = {name: value for name, value in whole.items() if name != "decoded_sha256"}
    for before, told in ((older, "begun by an older version"), (whole | {"decoded_sha256": "0"}, "ldm_us or Pillow")):
        config.write_text(json.dumps(before))
        capsys.readouterr()
        run("vae", stopped.out, "--steps", 4, "--save-every", 2)
        assert sum(told in note for note in notes_of(capsys)) == 1
        run("vae", stopped.out, "--steps", 4, "--save-every", 2)
        assert not any("decode" in note or "older" in note for note in notes_of(capsys)), "once"


def test_an_older_run_whose_random_weights_came_from_a_part_of_the_seed_alone_is_refused(run, refused, chain, tmp_path):
    """One that starts from a file has no random weights beside those in its state."""
    for start, weights in (("preset", None), ("weights", chain["vae"].path)):
        config = run("unet", tmp_path / start, "--seed", 2**32 + 7, weights=weights).out / "config.json"
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k[:7] != "decoded"}))
    assert "last 32 bits of --seed" in refused("unet", tmp_path / "preset", "--seed", 2**32 + 7, "--steps", 3)
    run("unet", tmp_path / "weights", "--seed", 2**32 + 7, "--steps", 3, weights=chain["vae"].path)


def test_a_controlnet_run_begun_with_the_share_of_empty_prompts_that_was_usual_before_says_so(
    run, chain, tmp_path, capsys
):
    out, weights = tmp_path / "run", chain["unet"].path
    run("controlnet", out, "--caption-dropout", 0.1, weights=weights)
    assert not any("--caption-dropout" in note for note in notes_of(capsys))
    run("controlnet", out, "--steps", 3, weights=weights)
    assert any("begun with --caption-dropout 0.1" in note for note in notes_of(capsys))


def test_states_that_are_written_beside_the_training_are_those_that_it_would_have_waited_for(
    run, tmp_path, monkeypatch
):
    """As on a GPU; a step in between changes the weights while the file is written."""
    plain = run("unet", tmp_path / "plain", "--steps", 5, "--save-every", 2, "--ema", 0.5)
    monkeypatch.setattr("ldm_us.training.run.off_host", lambda state: True)
    write = run_module.write_state
    monkeypatch.setattr(run_module, "write_state", lambda *about: time.sleep(0.2) or write(*about))
    beside = run("unet", tmp_path / "beside", "--steps", 5, "--save-every", 2, "--ema", 0.5)
    for name in ("step_00000004.pt", "step_00000005.pt"):
        one, other = (torch.load(each.out / "state" / name, weights_only=True) for each in (plain, beside))
        assert all(torch.equal(a, b) for a, b in zip(*map(tensors_of, (one, other)), strict=True)), name


def tensors_of(state):
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
