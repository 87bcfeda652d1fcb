"""train.py --objective, --min-snr and --offset-noise: what they change, what they leave alone, where they belong."""

import json

import pytest
import torch

from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage

DIFFUSION = ("unet", "controlnet")
OPTIONS = {"--objective": "v", "--min-snr": 5, "--offset-noise": 0.1}


def prediction_of(result):
    return load_model(result.path).config.schedule.prediction


def same_weights(a, b):
    return all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())


def training_losses(result):
    return [line["loss"] for line in result.log if "loss" in line]


@pytest.fixture(scope="module")
def v_chain(run, chain, tmp_path_factory):
    """A UNet that learned v on a trained autoencoder, and a ControlNet on it, with every option."""
    folder = tmp_path_factory.mktemp("v_chain")
    flags = ("--min-snr", 5, "--offset-noise", 0.1, "--sample-every", 2)
    unet = run("unet", folder / "unet", "--objective", "v", *flags, weights=chain["vae"].path)
    return {"unet": unet, "controlnet": run("controlnet", folder / "controlnet", *flags, weights=unet.path)}


@pytest.mark.parametrize("stage", DIFFUSION)
def test_what_a_model_predicts_is_kept_from_stage_to_stage_and_told_in_its_lineage(v_chain, stage):
    assert prediction_of(v_chain[stage]) == "v"
    entry = read_lineage(read_metadata(v_chain[stage].path)).entries[-1]
    assert (entry["objective"], entry["min_snr"], entry["offset_noise"]) == ("v", 5.0, 0.1)
    config = json.loads((v_chain[stage].out / "config.json").read_text())
    assert (config["min_snr"], config["offset_noise"]) == (5.0, 0.1)


@pytest.mark.parametrize("stage", DIFFUSION)
def test_a_start_from_random_weights_predicts_what_is_asked_for_and_else_the_noise(run, tmp_path, stage):
    runs = {name: run(stage, tmp_path / name, "--steps", 1, "--objective", name) for name in ("eps", "v")}
    plain = run(stage, tmp_path / "plain", "--steps", 1)
    assert {name: prediction_of(result) for name, result in runs.items()} == {"eps": "eps", "v": "v"}
    assert prediction_of(plain) == "eps"
    assert same_weights(plain, runs["eps"])
    assert training_losses(plain) == training_losses(runs["eps"]) != training_losses(runs["v"])


def test_a_trained_denoiser_cannot_change_what_its_output_means(run, refused, v_chain, chain, tmp_path):
    for weights, known, other in ((v_chain["unet"], "v", "eps"), (chain["unet"], "eps", "v")):
        for stage in DIFFUSION:
            sentence = refused(stage, tmp_path / "refused", "--objective", other, weights=weights.path)
            assert f"--objective {other}" in sentence
            assert str(weights.path) in sentence
            assert f"trained to predict {known}" in sentence
        assert not (tmp_path / "refused").exists()
        assert prediction_of(run("unet", tmp_path / known, "--objective", known, weights=weights.path)) == known


def test_the_denoiser_that_came_with_an_autoencoder_alone_may_still_learn_either(run, chain, tmp_path):
    assert prediction_of(chain["vae"]) == "eps"
    assert prediction_of(run("unet", tmp_path / "v", "--objective", "v", weights=chain["vae"].path)) == "v"


def test_an_autoencoder_trained_on_with_a_denoiser_in_its_file_leaves_that_ones_meaning_alone(run, v_chain, tmp_path):
    again = run("vae", tmp_path / "vae", weights=v_chain["unet"].path)
    assert prediction_of(again) == "v"


@pytest.mark.parametrize("name", OPTIONS)
def test_the_vae_stage_has_no_use_for_any_of_them(refused, tmp_path, name):
    sentence = refused("vae", tmp_path / "run", name, OPTIONS[name])
    assert sentence.startswith(f"{name} belongs to the unet and controlnet stages")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("--min-snr", 0), ("--min-snr", -1), ("--min-snr", "nan"), ("--offset-noise", -0.1),
                        ("--offset-noise", "nan"), ("--offset-noise", "inf")],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_named(refused, tmp_path, flag, value):
    assert f"{flag} {float(value)}" in refused("unet", tmp_path / "run", flag, value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", DIFFUSION)
def test_weights_and_offsets_change_the_training_loss_and_not_the_validation_of_the_same_weights(
    run, chain, tmp_path, stage
):
    start = {"unet": "vae", "controlnet": "unet"}[stage]
    flags = ("--steps", 1, "--validate-every", 1, "--held-out", 0.5, "--lr", 1e-30)
    choices = {"plain": (), "min-snr": ("--min-snr", 5), "offset": ("--offset-noise", 0.5)}
    runs = [run(stage, tmp_path / n, *flags, *choice, weights=chain[start].path) for n, choice in choices.items()]
    plain, *others = ([line for line in result.log if "loss" not in line] for result in runs)
    assert plain
    assert all(figures == plain for figures in others)
    losses = {tuple(training_losses(result)) for result in runs}
    assert len(losses) == 3


def test_offset_noise_0_trains_what_no_offset_noise_trains(run, chain, tmp_path):
    a = run("unet", tmp_path / "a", weights=chain["vae"].path)
    b = run("unet", tmp_path / "b", "--offset-noise", 0, weights=chain["vae"].path)
    assert same_weights(a, b)
