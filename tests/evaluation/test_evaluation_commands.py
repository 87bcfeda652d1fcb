"""python -m ldm_us.evaluation: what it prints, on which images, and how it refuses."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data.records import load_image, load_pair
from ldm_us.diffusion.grain import REACH, Grain
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.masks.fidelity import mask_fidelity, other_of_its_class
from ldm_us.evaluation.sets.evaluated_images import held_out_records, unseen_records
from ldm_us.evaluation.sets.image_sets import read_set
from ldm_us.files.checkpoint import save_model
from ldm_us.files.lineage import Lineage
from ldm_us.runtime.entry import run_command
from ldm_us.training.dataset import data_hash, split_data
from ldm_us.training.reconstruction import reconstruct_grey
from tests.conftest import MICRO


@pytest.fixture(scope="module")
def busi(tmp_path_factory):
    root = tmp_path_factory.mktemp("busi")
    rng = np.random.default_rng(0)
    for label in ("benign", "malignant", "normal"):
        (root / label).mkdir()
        for number in range(1, 9):
            mask = np.zeros((32, 32), dtype=np.uint8)
            if label != "normal":
                y, x = rng.integers(4, 16, 2)
                mask[y : y + 10, x : x + 12] = 255
            image = rng.integers(90, 160, (32, 32)) - mask // 4
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{label} ({900 + number}).png")
            Image.fromarray(mask).save(root / label / f"{label} ({900 + number})_mask.png")
    return root


def save(path, data, held_out, controlnet=True):
    torch.manual_seed(0)
    model = LatentDiffusion(MICRO)
    if controlnet:
        model.add_controlnet()
    entries = tuple(
        {"stage": stage, "held_out": share, "data_sha256": data_hash(split_data([data], share)[0])}
        for stage, share in zip("ab", held_out, strict=False)
    )
    save_model(model, path, Lineage(entries).metadata())
    return path


def test_reconstruction_is_measured_on_the_held_out_images_alone(busi, tmp_path, capsys):
    weights = save(tmp_path / "m.safetensors", busi, [0.25])
    assert main(["reconstruction", "--weights", str(weights), "--data", str(busi)]) == 0
    printed = json.loads(capsys.readouterr().out)
    _, held_out = split_data([busi], 0.25)
    assert printed["images"] == len(held_out) > 0
    assert 0 < printed["psnr_db"]["mean"] < 40


def test_reconstructions_are_written_as_a_set_with_the_models_grain_or_without_it(busi, tmp_path, capsys):
    torch.manual_seed(0)
    model = LatentDiffusion(MICRO)
    grain = Grain(3)
    grain.taps[:, REACH, REACH], grain.gain[:] = 1.0, 0.1  # white, a tenth of the range
    model.set_grain(grain)
    weights = tmp_path / "m.safetensors"
    save_model(model, weights, {})
    command = ["reconstruction", "--weights", str(weights), "--data", str(busi), "--unseen", "--images"]
    assert main([*command, str(tmp_path / "grain"), "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "reconstruction.json").read_text())
    assert main([*command, str(tmp_path / "plain"), "--no-grain"]) == 0
    grained, plain = (read_set([tmp_path / name]) for name in ("grain", "plain"))
    records = unseen_records(weights, [busi])
    for one in (grained, plain):
        assert [(r.image.name, r.label) for r in one] == [(r.image.name, r.label) for r in records]
    for record, with_it, without in zip(records, grained, plain, strict=True):
        expected = reconstruct_grey(model, load_image(record.image, MICRO.image_size)[None, :1] / 2 + 0.5)
        x_hat, x_hat_grain = (load_image(r.image, MICRO.image_size)[None, :1] / 2 + 0.5 for r in (without, with_it))
        assert torch.allclose(x_hat, expected, atol=1 / 255)
        assert 0.05 < float((x_hat_grain - x_hat).std()) < 0.15


def test_what_a_command_would_replace_is_refused_before_the_work(busi, tmp_path, capsys):
    weights = save(tmp_path / "m.safetensors", busi, [0.25])
    command = ["reconstruction", "--weights", str(weights), "--data", str(busi)]
    for option, name in (("--out", "reconstruction.json"), ("--images", "manifest.jsonl")):
        (tmp_path / name).write_text("mine")
        assert run_command(partial(main, [*command, option, str(tmp_path)])) == 2
        assert f"has {name} already" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"


def test_masks_are_those_of_held_out_lesions_and_every_class_is_reported(busi, tmp_path, capsys):
    weights = save(tmp_path / "m.safetensors", busi, [0.5, 0.5])
    argv = ["masks", "--weights", str(weights), "--data", str(busi), "--steps", "2", "--n", "4"]
    assert main(argv) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["masks"] == 4
    assert set(printed["dice"]) == {"true", "shuffled", "real"}
    assert set(printed["dice"]["true"]) >= {"all", "benign"}


def test_shuffled_masks_are_those_of_other_images_and_true_masks_their_own(busi, tmp_path, monkeypatch):
    """A generator that draws the asked mask perfectly has a Dice of 1 against it and less against another's."""
    records = [record for record in split_data([busi], 0.5)[1] if record.label != "normal"]

    def draw_the_mask(_model, _prompts, *, masks, **_settings):
        return (0.6 - 0.4 * masks).expand(-1, 3, -1, -1)

    monkeypatch.setattr("ldm_us.evaluation.samples.generate", draw_the_mask)
    sampling = Sampling(steps=2, guidance=1.0)
    find = lambda images: (images < 0.4).float()  # noqa: E731
    fidelity = mask_fidelity(LatentDiffusion(MICRO), records, sampling, find, batch=3)
    assert fidelity.true.dice.tolist() == [1.0] * len(records)
    masks = torch.stack([load_pair(record, MICRO.image_size)[1] for record in records])
    assert torch.equal((fidelity.samples < 0.4).float(), masks)
    assert (fidelity.shuffled.dice < 1).all()


@pytest.mark.parametrize(
    ("held_out", "controlnet", "command", "sentence"),
    [
        ([0.0], True, "reconstruction", "--held-out 0"),
        ([0.1, 0.2], True, "reconstruction", "another split of the same data (held out 0.1, the last stage 0.2)"),
        ([], True, "reconstruction", "was not trained here"),
        ([0.5], False, "masks", "no ControlNet"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(
    busi, tmp_path, capsys, held_out, controlnet, command, sentence
):
    weights = save(tmp_path / "m.safetensors", busi, held_out, controlnet)
    code = run_command(partial(main, [command, "--weights", str(weights), "--data", str(busi)]))
    lines = capsys.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (2, 1)
    assert sentence in lines[0]


def test_other_images_than_in_training_are_refused_since_the_held_out_ones_may_have_been_trained_on(busi, tmp_path):
    data = tmp_path / "busi"
    shutil.copytree(busi, data)
    weights = save(tmp_path / "m.safetensors", data, [0.25])
    train, held_out = split_data([data], 0.25)
    assert held_out_records(weights, [data]) == held_out
    train[0].image.unlink()
    for mask in train[0].masks:
        mask.unlink()
    with pytest.raises(ValueError, match="was trained on other images"):
        held_out_records(weights, [data])


def test_masks_are_shuffled_within_a_class_and_none_stays_in_place():
    labels = ["benign"] * 5 + ["malignant"] * 2
    others = other_of_its_class(labels)
    assert sorted(others) == list(range(7))
    assert all(i != other and labels[i] == labels[other] for i, other in enumerate(others))
    with pytest.raises(ValueError, match="1 malignant image with a lesion mask"):
        other_of_its_class(["benign", "benign", "malignant"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch", "0"], "--batch 0"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--steps", "0"], "--steps 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(busi, tmp_path, capsys, options, sentence):
    weights = save(tmp_path / "m.safetensors", busi, [0.5])
    code = run_command(partial(main, ["masks", "--weights", str(weights), "--data", str(busi), *options]))
    assert code == 2
    assert sentence in capsys.readouterr().err
