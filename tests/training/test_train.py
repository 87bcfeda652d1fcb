"""train.py: what a run writes, what it trains and leaves alone, and what its options really do."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import train
from ldm_us.data.digests import image_digests
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.synthesis.info import describe_model
from ldm_us.training.dataset import data_hash, image_moments, load_training_set, split_data
from ldm_us.training.start import random_model

STAGES = ("vae", "unet", "controlnet")
TRAINED = {"vae": {"vae"}, "unet": {"unet"}, "controlnet": {"controlnet"}}


def parts_that_differ(before, after):
    """Top-level parts in which some, and those in which every tensor of `after` is other than in `before`."""
    same = {name: name in before and torch.equal(before[name], value) for name, value in after.items()}
    some = {name.split(".")[0] for name, equal in same.items() if not equal}
    return some, {part for part in some if not any(same[name] for name in same if name.startswith(f"{part}."))}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_writes_config_log_samples_states_and_a_model_that_loads(chain, stage, busi):
    run = chain[stage]
    assert {path.name for path in run.out.iterdir()} == {
        ".lock", "config.json", "log.jsonl", "curves.png", "samples", "state", "model.safetensors"
    }  # fmt: skip
    config = json.loads((run.out / "config.json").read_text())
    assert (config["stage"], config["images_per_step"], config["lr"], config["data"]) == (stage, 2, 1e-3, [str(busi)])
    assert [line["step"] for line in run.log] == [1, 2]
    assert {"loss", "grad_norm", "lr", "images_per_s"} <= run.log[0].keys()
    assert [path.name for path in (run.out / "state").iterdir()] == ["step_00000002.pt"]
    before, picture = sorted((run.out / "samples").iterdir())
    assert (before.name, picture.name) == ("step_00000000.png", "step_00000002.png")
    assert np.asarray(Image.open(picture)).std() > 0
    model = load_model(run.path)
    assert (model.controlnet is not None) == (stage == "controlnet")
    assert model.config.name == "micro"


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_parts_do_not_change_by_one_bit_and_every_trained_tensor_does(chain, stage):
    before = (
        random_model("micro", seed=0).state_dict() if stage == "vae" else chain[STAGES[STAGES.index(stage) - 1]].weights
    )
    assert parts_that_differ(before, chain[stage].weights) == (TRAINED[stage], TRAINED[stage])


def test_with_train_text_the_text_encoder_learns_too_and_the_autoencoder_does_not(chain, run, tmp_path):
    result = run("unet", tmp_path / "run", "--train-text", weights=chain["vae"].path)
    some, _ = parts_that_differ(chain["vae"].weights, result.weights)
    assert some == {"unet", "text"}


def test_a_new_unet_stage_drops_the_controlnet_of_the_old_unet(chain, run, tmp_path):
    result = run("unet", tmp_path / "run", weights=chain["controlnet"].path)
    assert load_model(result.path).controlnet is None


def test_a_controlnet_stage_goes_on_with_the_controlnet_it_finds(chain, run, tmp_path):
    """With a learning rate near 0, what comes out is what went in."""
    result = run("controlnet", tmp_path / "run", "--lr", 1e-30, weights=chain["controlnet"].path)
    assert parts_that_differ(chain["controlnet"].weights, result.weights) == (set(), set())


@pytest.mark.parametrize("stage", STAGES)
def test_the_seed_decides_everything_and_nothing_else_does(run, tmp_path, stage):
    runs = []
    for i, seed in enumerate((5, 5, 6)):
        torch.manual_seed(i)
        runs.append(run(stage, tmp_path / str(i), "--seed", seed))
    assert parts_that_differ(runs[0].weights, runs[1].weights) == (set(), set())
    assert [line["loss"] for line in runs[0].log] == [line["loss"] for line in runs[1].log]
    assert TRAINED[stage] <= parts_that_differ(runs[0].weights, runs[2].weights)[0]


def test_the_seed_decides_the_hint_network_of_a_new_controlnet(chain, run, tmp_path):
    runs = []
    for i, seed in enumerate((5, 5, 6)):
        torch.manual_seed(i)
        flags = ("--seed", seed, "--lr", 1e-30)
        runs.append(run("controlnet", tmp_path / str(i), *flags, weights=chain["unet"].path).weights)
    name = "controlnet.hint_network.convs.0.weight"
    assert torch.equal(runs[0][name], runs[1][name])
    assert not torch.equal(runs[0][name], runs[2][name])


def test_samples_show_the_same_pictures_for_the_same_weights(run, tmp_path):
    """At a learning rate near 0 the weights stay; the pictures of all steps are then equal to the last bit."""
    still = run("unet", tmp_path / "still", "--sample-every", 1, "--lr", 1e-30)
    first, second, third = sorted((still.out / "samples").iterdir())
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    moving = run("unet", tmp_path / "moving", "--sample-every", 1, "--lr", 1e-2, "--ema", 0)
    first, second, third = sorted((moving.out / "samples").iterdir())
    assert first.read_bytes() != second.read_bytes() != third.read_bytes()


def test_the_result_holds_the_averaged_weights_and_the_state_the_trained_ones(run, tmp_path):
    result = run("vae", tmp_path / "run", "--ema", 0.5)
    state = torch.load(result.out / "state" / "step_00000002.pt", weights_only=True)
    for name, average in state["ema"]["average"].items():
        assert torch.equal(result.weights[name], average)
    assert any(not torch.equal(result.weights[name], value) for name, value in state["trained"].items())


def test_samples_are_made_with_the_averaged_weights(run, tmp_path, monkeypatch):
    seen = {}

    def look(stage):
        seen.update({name: value.clone() for name, value in stage.model.state_dict().items()})
        return Image.new("L", (8, 8))

    monkeypatch.setattr(train, "preview", look)
    result = run("unet", tmp_path / "run", "--sample-every", 2, "--ema", 0.5)
    assert parts_that_differ(seen, result.weights) == (set(), set())


def test_held_out_images_never_reach_training(run, tmp_path, busi, monkeypatch):
    seen = []

    def load(records, decoded):
        seen.extend(records)
        return load_training_set(records, decoded)

    monkeypatch.setattr(train, "load_training_set", load)
    result = run("vae", tmp_path / "run", "--held-out", 0.3)
    records, held_out = split_data([busi], 0.3)
    assert seen == records, "with --validate-every 0"
    assert {record.label for record in held_out} == {"benign", "malignant", "normal"}
    assert not {record.image for record in held_out} & {record.image for record in seen}
    assert json.loads((result.out / "config.json").read_text())["data_sha256"] == data_hash(records)


def test_metadata_tell_the_whole_lineage_of_three_stages(chain, busi):
    lineage = json.loads(read_metadata(chain["controlnet"].path)["lineage"])
    assert [entry["stage"] for entry in lineage] == list(STAGES)
    parents = ["random", sha256_file(chain["vae"].path), sha256_file(chain["unet"].path)]
    assert [entry["parent_sha256"] for entry in lineage] == parents
    for entry in lineage:
        assert (entry["steps"], entry["images_per_step"], entry["learning_rate"], entry["seed"]) == (2, 2, 1e-3, 0)
        assert (entry["held_out"], entry["data"]) == (0.1, [busi.name])
        assert entry["data_sha256"] == data_hash(split_data([busi], 0.1)[0])
    train = split_data([busi], 0.1)[0]
    known = read_lineage(read_metadata(chain["controlnet"].path)).trained_on()
    assert known.keys() == set(image_digests(train)), "and the images themselves, which --info counts"
    told = describe_model(chain["controlnet"].path)
    assert told.count(f"  images           {len(train)}\n") == 3
    assert lineage[0]["new_images"] not in told
    assert "words" not in lineage[0], "an autoencoder learns none"
    of_class = Counter(record.label for record in train)
    for label in ("benign", "malignant", "normal"):
        assert [f"Ultrasound image of a {label} breast", label, of_class[label]] in lineage[1]["words"]["prompts"]
    assert lineage[2]["words"]["prompts"] == lineage[1]["words"]["prompts"]
    assert f"{of_class['normal']} images  Ultrasound image of a normal breast" in told


def test_after_the_vae_stage_the_scaled_latents_have_unit_standard_deviation(chain, busi):
    """LDM appendix G."""
    model = load_model(chain["vae"].path)
    assert model.vae.scale == model.config.vae.scale != 0.18215
    data = load_training_set(split_data([busi], 0.1)[0], 16)
    generator = torch.Generator().manual_seed(0)
    moments = torch.stack([image_moments(model, data, i)[0] for i in range(len(data))])
    posterior = posterior_from_moments(moments, model.vae.scale)
    z_0 = torch.cat([posterior.sample(generator) for _ in range(50)])
    assert float(z_0.std()) == pytest.approx(1.0, abs=0.02)


def test_the_later_stages_keep_the_latent_scale(chain):
    scales = {load_model(run.path).vae.scale for run in chain.values()}
    assert len(scales) == 1


def test_training_the_autoencoder_further_keeps_the_scale_that_the_unet_was_trained_with(run, chain, tmp_path):
    result = run("vae", tmp_path / "more", weights=chain["unet"].path)
    assert load_model(result.path).vae.scale == load_model(chain["unet"].path).vae.scale
