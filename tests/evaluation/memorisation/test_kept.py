"""The command kept: a model that copies is told from one that does not, and the table says at which step."""

import json

import pytest
import torch

from ldm_us.data.phantom.files import Plan, write_phantoms
from ldm_us.data.records import load_image
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.memorisation import kept_command as kept
from ldm_us.files.checkpoint import save_model
from ldm_us.files.lineage import Lineage
from ldm_us.runtime.entry import run_command
from ldm_us.training.dataset import data_hash, split_data

SHARE = 0.15


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(Plan(160, 32, seed=0), folder)
    return folder


@pytest.fixture
def a_run(micro, phantoms, tmp_path):
    """The folder of a run that kept two models, and logged the validation of the first alone."""
    train, _ = split_data([phantoms], SHARE)
    entry = {"stage": "unet", "held_out": SHARE, "data": [phantoms.name], "data_sha256": data_hash(train)}
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    (tmp_path / "run/kept").mkdir(parents=True)
    for step in (50, 100):
        save_model(model, tmp_path / f"run/kept/step_{step:08d}.safetensors", Lineage((entry,)).metadata())
    (tmp_path / "run/log.jsonl").write_text('{"step": 50, "loss": 1}\n{"step": 50, "val_loss": 0.25}\n')
    return tmp_path / "run"


def test_the_table_says_from_which_step_on_samples_are_copies(a_run, phantoms, tmp_path, monkeypatch, capsys):
    train, held_out = split_data([phantoms], SHARE)
    drawn = []

    def draw(model, prompts, sampling, seed, batch, masks):  # at first held-out images, then those of training
        drawn.append((prompts, seed))
        source = held_out if len(drawn) == 1 else train
        images = [load_image(source[i % len(source)].image, 16)[:1] / 2 + 0.5 for i in range(len(prompts))]
        return torch.stack(images)

    monkeypatch.setattr(kept, "draw_samples", draw)
    words = ["kept", a_run, "--data", phantoms, "--n", 24, "--device", "cpu", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert "copying starts at step 100 at the latest" in text
    assert "0.2500" in text
    report = json.loads((tmp_path / "out/kept.json").read_text())
    first, second = report["kept"]
    assert (first["step"], second["step"], report["copies_from_step"]) == (50, 100, 100)
    assert (first["val_loss"], second["val_loss"]) == (0.25, None)
    assert first["flagged"]["share"] < 0.3 < 0.9 < second["flagged"]["share"]
    assert second["training_images_copied"] >= 20
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == [train[i * len(train) // 24].prompt for i in range(24)]


def test_a_model_draws_its_own_samples_and_a_run_without_models_is_refused(a_run, phantoms, tmp_path, capsys):
    words = ["kept", str(a_run), "--data", str(phantoms), "--n", "2", "--steps", "2", "--device", "cpu"]
    assert main(words) == 0
    assert "no model is shown to copy" in capsys.readouterr().out
    assert run_command(lambda: main([*words, "--n", "0"])) == 2
    (tmp_path / "empty").mkdir()
    assert run_command(lambda: main(["kept", str(tmp_path / "empty"), "--data", str(phantoms)])) == 2
    assert "--keep-every N" in capsys.readouterr().err
