"""train.py --weights FILE --preset NAME: the part of the stage is new, of the preset's size; all else is FILE's."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from ldm_us.config import PRESETS, TextConfig
from ldm_us.data.words import digest_of, words_of
from ldm_us.diffusion.grain import Grain
from ldm_us.diffusion.start_prior import StartPrior
from ldm_us.files.checkpoint import load_model, read_metadata, save_model
from ldm_us.files.lineage import read_lineage
from ldm_us.training.command_line import parse_options
from ldm_us.training.start import random_model
from tests.conftest import MICRO

SMALL = replace(MICRO, name="small", unet=replace(MICRO.unet, width=4, heads=1))
OTHERS = {
    "small": SMALL,
    "small text": replace(SMALL, text=TextConfig(width=8, heads=1, layers=1, mlp_width=8)),
    "wide vae": replace(MICRO, vae=replace(MICRO.vae, width=12)),
    "v": replace(MICRO, name="v", schedule=replace(MICRO.schedule, prediction="v", zero_terminal_snr=True)),
    "hint": replace(MICRO, name="hint", control=replace(MICRO.control, hint_channels=(4, 8, 12), scale=3.0)),
}


@pytest.fixture(autouse=True)
def others(micro, monkeypatch):
    for name, config in OTHERS.items():
        monkeypatch.setitem(PRESETS, name, config)


@pytest.fixture(scope="module")
def measured(chain, tmp_path_factory):
    """The model of all stages, with a scale, a start prior and a grain of its own."""
    model = load_model(chain["controlnet"].path)
    model.set_latent_scale(0.5)
    model.set_prior(StartPrior(4, 2, ()))
    model.set_grain(Grain(2))
    path = tmp_path_factory.mktemp("measured") / "model.safetensors"
    metadata = read_metadata(chain["controlnet"].path)
    save_model(model, path, {key: metadata[key] for key in metadata if key not in ("format", "config", "ldm_us")})
    return path


def parts(result, *names):
    return {name: value for name, value in result.items() if name.split(".")[0] in names}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_smaller_denoiser_is_new_and_all_that_belongs_to_the_latents_and_the_text_is_kept(
    run, measured, tmp_path, capsys
):
    result = run("unet", tmp_path / "run", "--preset", "small", weights=measured)
    before, model = load_model(measured), load_model(result.path)
    assert same(parts(result.weights, "vae", "text", "grain"), parts(before.state_dict(), "vae", "text", "grain"))
    assert same(parts(result.weights, "prior"), parts(before.state_dict(), "prior")), "too few images for another"
    schedule = replace(SMALL.schedule, start_prior=2)
    assert model.config == replace(SMALL, vae=before.config.vae, schedule=schedule)
    assert model.vae.scale == 0.5
    assert model.controlnet is None
    assert f"note: from {measured}: vae, text; new, of random weights as small has them: denoiser." in (
        capsys.readouterr().err
    )
    entries = read_lineage(read_metadata(result.path)).entries
    assert [entry["stage"] for entry in entries] == ["vae", "unet", "controlnet", "unet"]
    assert [entry.get("preset") for entry in entries] == ["micro", None, None, "small"]


def test_a_new_denoiser_knows_the_words_that_it_was_taught_alone(run, measured, busi, tmp_path):
    folder = tmp_path / "captions"
    shutil.copytree(busi / "benign", folder, ignore=shutil.ignore_patterns("*_mask*"))
    rows = [json.dumps({"file_name": f"benign ({9001 + i}).png", "text": "a cyst"}) for i in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    result = run("unet", tmp_path / "run", "--preset", "small", weights=measured, data=folder)
    words = words_of(result.path)
    assert words.prompts == ["a cyst"]
    assert words.digests == {digest_of("a cyst")}
    assert len(words_of(measured).digests) > 1


def test_the_new_denoiser_starts_from_the_random_weights_of_preset_and_seed(run, measured, tmp_path):
    flags = ("--preset", "small", "--lr", 1e-12, "--ema", 0, "--weight-decay", 0, "--seed", 5)
    result = run("unet", tmp_path / "run", *flags, weights=measured)
    start = random_model("small", 5).state_dict()
    for name, value in parts(result.weights, "unet").items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-9)


def test_a_denoiser_of_another_schedule_has_that_of_the_preset_and_no_prior_where_it_ends_in_noise(
    run, measured, tmp_path
):
    model = load_model(run("unet", tmp_path / "run", "--preset", "v", weights=measured).path)
    assert model.config.schedule == OTHERS["v"].schedule
    assert model.prior is None
    assert model.schedule.ends_in_noise


def test_a_text_encoder_of_another_size_is_new_and_told(run, measured, tmp_path, capsys):
    result = run("unet", tmp_path / "run", "--preset", "small text", "--train-text", weights=measured)
    assert "new, of random weights as small text has them: denoiser and text encoder" in capsys.readouterr().err
    assert load_model(result.path).config.text == OTHERS["small text"].text


def test_a_new_controlnet_of_another_kind_stands_on_the_model_as_it_is(run, measured, tmp_path):
    result = run("controlnet", tmp_path / "run", "--preset", "hint", weights=measured)
    before, model = load_model(measured), load_model(result.path)
    assert same(parts(result.weights, "vae", "text", "unet"), parts(before.state_dict(), "vae", "text", "unet"))
    assert model.config == replace(before.config, name="hint", control=OTHERS["hint"].control)
    assert model.controlnet.config.scale == 3.0


@pytest.mark.parametrize(
    ("stage", "preset", "sentence"),
    [
        (
            "unet",
            "wide vae",
            "vae.width is 8, in the preset 12. What is kept of a model must be as in the preset: vae",
        ),
        ("controlnet", "small", "unet.width is 8, in the preset 4, unet.heads is 2, in the preset 1. What is kept"),
        ("controlnet", "v", "schedule.zero_terminal_snr is False, in the preset True"),
        ("vae", "small", "the vae stage has neither"),
        ("unet", "none", "--preset none: unknown"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(refused, measured, tmp_path, stage, preset, sentence):
    assert sentence in refused(stage, tmp_path / "run", "--preset", preset, weights=measured)
    assert not (tmp_path / "run").exists()


def test_neither_weights_nor_a_preset_is_refused(busi, tmp_path):
    with pytest.raises(ValueError, match="nothing to start from: give --weights FILE, or random weights by --preset"):
        parse_options(["unet", "--data", str(busi), "--out", str(tmp_path / "run"), "--steps", "1"])


def test_a_lora_has_no_use_for_a_new_denoiser(refused, measured, tmp_path):
    assert "--weights instead of --preset" in refused(
        "unet", tmp_path / "run", "--preset", "small", "--lora", 2, weights=measured
    )


def test_a_stopped_and_resumed_run_ends_at_the_same_bits_and_another_preset_is_another_run(
    run, refused, measured, tmp_path
):
    flags = ("--preset", "small", "--save-every", 2, "--ema", 0.5)
    straight = run("unet", tmp_path / "straight", "--steps", 4, *flags, weights=measured)
    for steps in (2, 4):
        torch.manual_seed(steps)
        resumed = run("unet", tmp_path / "run", "--steps", steps, *flags, weights=measured)
    assert same(straight.weights, resumed.weights)
    assert "preset was small, is micro" in refused("unet", tmp_path / "run", "--preset", "micro", weights=measured)
    assert "preset was small, is None" in refused("unet", tmp_path / "run", weights=measured)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["preset"] == "small"
