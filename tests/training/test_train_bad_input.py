"""train.py and bad input: exit code 2, one sentence that names what is wrong, nothing half-written, no state lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--steps", 0), "--steps 0"),
        (("--steps", -3), "--steps -3"),
        (("--epochs", 0), "--epochs 0"),
        (("--epochs", "nan"), "--epochs nan"),
        (("--epochs", "inf"), "--epochs inf"),
        (("--batch", 0), "--batch 0"),
        (("--accumulate", 0), "--accumulate 0"),
        (("--lr", -1), "--lr -1"),
        (("--lr", "nan"), "--lr nan"),
        (("--lr", "inf"), "--lr inf"),
        (("--clip", 0), "--clip 0"),
        (("--warmup", -1), "--warmup -1"),
        (("--weight-decay", -1), "--weight-decay -1"),
        (("--weight-decay", "nan"), "--weight-decay nan"),
        (("--ema", 1), "--ema 1"),
        (("--held-out", 1), "--held-out 1"),
        (("--caption-dropout", "nan"), "--caption-dropout nan"),
        (("--caption-dropout", 1.1), "--caption-dropout 1.1"),
        (("--seed", -1), "--seed -1"),
        (("--save-every", 0), "--save-every 0"),
        (("--log-every", 0), "--log-every 0"),
        (("--size", 0), "--size 0"),
        (("--size", 20), "multiple of 8"),
        (("--train-text",), "--train-text"),
        (("--device", "gpu"), "--device gpu"),
        (("--device", "cuda:99"), "--device cuda:99"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_number_that_makes_no_sense_is_named_before_anything_is_written(refused, out, flags, named):
    assert named in refused("vae", out, *flags)
    assert not out.exists()


def test_an_unknown_preset_is_named_with_the_known_ones(refused, out):
    sentence = refused("vae", out, "--preset", "sd99")
    assert "--preset sd99" in sentence
    assert "us128" in sentence
    assert not out.exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not safetensors", "cut", "other"])
def test_weights_that_are_missing_or_broken_are_named(refused, out, tmp_path, chain, content):
    weights = tmp_path / "weights.safetensors"
    if content == "cut":
        weights.write_bytes(chain["vae"].path.read_bytes()[:-100])
    elif content == "other":
        save_file({"x": torch.zeros(1)}, weights)
    elif content is not None:
        weights.write_bytes(content)
    assert str(weights) in refused("unet", out, weights=weights)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "other", "classes without images"])
def test_a_wrong_data_folder_is_named(refused, out, tmp_path, kind):
    data = tmp_path / "data"
    if kind == "file":
        data.write_bytes(b"")
    elif kind == "classes without images":
        (data / "benign").mkdir(parents=True)
    elif kind != "missing":
        data.mkdir()
        (data / "cat.png" if kind == "other" else data / ".keep").write_bytes(b"")
    assert str(data) in refused("vae", out, data=data)
    assert not out.exists()


def damage(data, kind):
    """Make one training image or mask unusable; return its name."""
    image, mask = data / "benign" / "benign (9001).png", data / "benign" / "benign (9001)_mask.png"
    if kind == "mask of another size":
        Image.fromarray(np.full((9, 9), 255, np.uint8)).save(mask)
    elif kind == "cut image":
        image.write_bytes(image.read_bytes()[:200])
    elif kind == "empty image":
        image.write_bytes(b"")
    elif kind == "text as mask":
        mask.write_text("not an image")
    return mask.name if "mask" in kind else image.name


@pytest.mark.parametrize("stage", ["vae", "controlnet"])
@pytest.mark.parametrize("kind", ["mask of another size", "cut image", "empty image", "text as mask"])
def test_a_bad_image_or_mask_is_named_and_the_run_can_start_once_it_is_replaced(
    refused, run, out, own_busi, stage, kind
):
    before = files(own_busi)
    name = damage(own_busi, kind)
    assert name in refused(stage, out, "--held-out", 0, data=own_busi)
    assert not out.exists()
    for path, data in before.items():
        path.write_bytes(data)
    run(stage, out, "--held-out", 0, data=own_busi)


@pytest.mark.parametrize("kind", ["empty mask", "no mask"])
def test_a_controlnet_names_lesion_images_without_a_lesion_and_refuses_more_than_a_few(
    refused, run, out, own_busi, chain, kind, capsys
):
    masks = sorted([*own_busi.glob("benign/*_mask.png"), *own_busi.glob("malignant/*_mask.png")])
    given = {"weights": chain["unet"].path, "data": own_busi}
    for mask in masks[:3]:
        before = mask.read_bytes()
        with Image.open(mask) as picture:
            size = picture.size
        Image.new("L", size).save(mask) if kind == "empty mask" else mask.unlink()
    sentence = refused("controlnet", out, "--held-out", 0, **given)
    assert f"of {len(masks)} lesion images, these have no lesion in their masks or no mask: 3: benign" in sentence
    assert not out.exists()
    masks[2].write_bytes(before)
    run("controlnet", out, "--held-out", 0, **given)
    assert f"note: of {len(masks)} lesion images, these have no lesion in their masks or no mask: 2: " in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["photo.png", "model.safetensors", "config.json"])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(refused, out, name):
    out.mkdir()
    (out / name).write_bytes(b"mine")
    assert str(out) in refused("vae", out)
    assert files(out) == {out / name: b"mine"}


def test_a_config_json_of_another_program_is_refused_and_left_alone(refused, out):
    out.mkdir()
    (out / "config.json").write_text(json.dumps(["_class_name", "UNet2DConditionModel"]))
    before = files(out)
    assert str(out) in refused("vae", out)
    assert files(out) == before


def test_an_out_that_is_a_file_is_refused_and_left_alone(refused, out):
    out.write_bytes(b"mine")
    assert str(out) in refused("vae", out)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("stage", ["vae", "unet"])
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_its_states(refused, out, stage):
    sentence = refused(stage, out, "--lr", 1e30, "--steps", 9, "--save-every", 1)
    assert "after step 1" in sentence
    assert "nan" in sentence or "inf" in sentence
    assert str(out / "state") in sentence
    assert "--lr" in sentence
    assert not list((out / "state").iterdir())
    assert not (out / "model.safetensors").exists()


def test_an_update_that_ruins_the_weights_is_not_saved_and_the_run_goes_on_from_the_state_before(refused, run, out):
    step, calls = torch.optim.AdamW.step, []

    def ruinous_third_step(self, *args, **kwargs):
        step(self, *args, **kwargs)
        calls.append(self)
        if len(calls) == 3:
            for parameter in self.param_groups[0]["params"]:
                parameter.data.fill_(1e30)  # finite, but no loss comes of it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", ruinous_third_step)
        assert "after step 3" in refused("unet", out, "--steps", 4, "--save-every", 1)
    assert sorted(path.name for path in (out / "state").iterdir()) == ["step_00000001.pt", "step_00000002.pt"]
    assert run("unet", out, "--steps", 4, "--save-every", 1).log[-1]["step"] == 4


@pytest.mark.parametrize("stage", ["vae", "unet"])
@pytest.mark.parametrize("ema", [0, 0.5])
def test_weights_that_give_no_number_are_no_result_even_when_the_last_step_made_them(refused, out, stage, ema):
    assert "after step 1: the loss is nan" in refused(stage, out, "--lr", 1e38, "--steps", 1, "--ema", ema)
    assert not (out / "model.safetensors").exists()


def test_a_gradient_that_is_not_a_number_never_reaches_the_weights(refused, run, out, monkeypatch):
    before = run("vae", out, "--steps", 2).weights

    def poisoned(parameters, clip):
        for parameter in parameters:
            parameter.grad.fill_(float("nan"))
        return torch.tensor(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
        assert "step 3" in refused("vae", out, "--steps", 4)
    assert all(torch.equal(value, before[name]) for name, value in run("vae", out, "--steps", 2).weights.items())


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_disk_that_is_full_at_a_state_keeps_the_last_good_one_and_the_run_goes_on_when_there_is_room(
    refused, run, out, tmp_path, full_disk, monkeypatch, limit
):
    straight = run("vae", tmp_path / "straight", "--steps", 4, "--save-every", 2)
    with monkeypatch.context() as patch:
        full_disk("step_00000004", limit, patch)
        sentence = refused("vae", out, "--steps", 4, "--save-every", 2)
    assert "No space left on device" in sentence
    assert "step_00000004.pt" in sentence
    assert [path.name for path in (out / "state").iterdir()] == ["step_00000002.pt"]
    assert not (out / "model.safetensors").exists()
    again = run("vae", out, "--steps", 4, "--save-every", 2)
    assert all(torch.equal(value, straight.weights[name]) for name, value in again.weights.items())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", ".png"])
def test_a_disk_that_is_full_at_another_file_leaves_no_half_of_it(refused, out, full_disk, monkeypatch, name):
    full_disk(name, 50, monkeypatch)
    assert "No space left on device" in refused("vae", out, "--sample-every", 2)
    assert not [path for path in out.rglob("*") if path.is_file() and name in path.name]


def test_a_folder_that_cannot_be_made_is_named(refused, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    assert str(tmp_path / "file") in refused("vae", tmp_path / "file" / "run")
    assert files(tmp_path) == {tmp_path / "file": b"mine"}


def test_an_interrupt_ends_with_code_130_and_keeps_the_states(run, out, arguments, monkeypatch, capsys):
    run("vae", out, "--steps", 2)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "check_finite", interrupt)
    assert train.run_command(lambda: train.main(arguments("vae", out, "--steps", 4))) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in (out / "state").iterdir()] == ["step_00000002.pt"]


def test_the_script_itself_ends_with_code_2_and_no_traceback(tmp_path):
    """As a user runs it; the presets it knows are the shipped ones."""
    argv = ["vae", "--preset", "tiny", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--steps", "1"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *argv], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not BUSI")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
