"""sample.py --verify: yes for every picture as it was made, else which of weights, mask, settings or pixels differs."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import sample
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.fields import as_text, fields_sha256, pack_mask, pixels_sha256, unpack_mask
from ldm_us.synthesis.recipe import Recipe


@pytest.fixture
def verify(weights, capsys):
    """A function: sample.py --verify; -> exit code and the sentence."""

    def call(path, *options):
        words = [str(word) for word in ("--verify", path, "--weights", weights, *options)]
        capsys.readouterr()
        code = run_command(partial(sample.main, words))
        out = capsys.readouterr()
        (line,) = (out.out + out.err).strip().splitlines()
        return code, line

    return call


@pytest.fixture
def made(run, masks, tmp_path):
    """A sample with a mask."""
    run(tmp_path / "out", "--mask", masks / "benign", "--n", 1, "--guidance", 1.7, "--eta", 0.3)
    return tmp_path / "out" / "0001_benign_(2)_seed0.png"


def rewrite(path, pixels=None, signed=False, sampling=None, edition=None, **changed):
    """Save a sample with other pixels, fields or settings; signed: with digests to match, as a forger would."""
    with Image.open(path) as picture:
        text = picture.text | changed
        if edition is not None:
            text["settings"] = json.dumps(json.loads(text["settings"]) | {"edition": edition})
        if sampling is not None:
            settings = json.loads(text["settings"])
            text["settings"] = json.dumps(settings | {"sampling": settings["sampling"] | sampling})
        picture = picture.copy() if pixels is None else Image.fromarray(pixels(np.array(picture)))
    if signed:
        text["pixels_sha256"] = pixels_sha256(picture)
        text["fields_sha256"] = fields_sha256(text)
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    picture.save(path, pnginfo=info)


def brighter(pixels):
    pixels[3, 4] ^= 1
    return pixels


@pytest.mark.parametrize(
    "options",
    [
        ["--class", "benign"],
        ["--prompt", "caf\u00e9 \u4e73", "--negative-prompt", "calipers"],
        ["--sampler", "ddpm", "--class", "normal"],
        ["--size", 32, "--class", "normal"],
    ],
)
def test_every_sample_verifies_from_its_file_alone(run, verify, tmp_path, options):
    run(tmp_path / "out", "--batch", 2, *options)
    for path in tmp_path.glob("out/0*.png"):
        code, line = verify(path)
        assert (code, "pixels are those of its seed" in line) == (0, True), line


def test_a_picture_of_before_eta_was_refused_beside_ddpm_verifies(run, verify, tmp_path):
    run(tmp_path / "out", "--sampler", "ddpm", "--class", "benign", "--n", 1)
    (path,) = tmp_path.glob("out/0*.png")
    rewrite(path, sampling={"eta": 0.5}, signed=True)
    assert verify(path)[0] == 0


@pytest.mark.parametrize(
    "drawn_otherwise", [("--sampler", "ddim", "--steps", 59), ("--resample", 2), ("--seed", 2**32 + 7)]
)
def test_a_picture_of_before_a_rule_changed_is_drawn_again_by_the_old_rule_and_a_new_one_says_which(
    run, refused, verify, masks, tmp_path, monkeypatch, drawn_otherwise
):
    """In pictures without an edition.

    59 steps started at 929, RePaint's last noise led from DDIM's last level, and seeds were their last 32 bits.
    """
    edit = ("--init", masks / "benign" / "benign (1).png", "--inpaint", masks / "benign" / "benign (1)_mask.png")
    given = edit if "--resample" in drawn_otherwise else ()
    options = (*drawn_otherwise, *given, "--class", "benign", "--n", 1, "--batch", 1)
    run(tmp_path / "new", *options)
    run(tmp_path / "same", "--class", "benign", "--n", 1)
    with monkeypatch.context() as before:
        before.setattr(Recipe, "settled", lambda recipe, schedule, last_seed: replace(recipe, edition=1))
        run(tmp_path / "old", *options)
    pictures = {name: next((tmp_path / name).glob("0*.png")) for name in ("new", "old", "same")}
    for name, edition in (("new", 2), ("old", None), ("same", None)):
        assert verify(pictures[name], *(given if name != "same" else ()))[0] == 0
        assert json.loads(Image.open(pictures[name]).text["settings"]).get("edition") == edition
    assert np.asarray(Image.open(pictures["new"])).tolist() != np.asarray(Image.open(pictures["old"])).tolist()
    assert "begun by another command (edition 1, not 2)" in refused(tmp_path / "old", *options)


def test_a_masked_sample_verifies_without_its_mask_file(made, verify):
    assert verify(made)[0] == 0
    with Image.open(made) as picture:
        assert len(picture.text["mask_bits"]) < 100


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pixels": brighter}, "pixels: they were changed after the picture was made."),
        ({"seed": "5"}, "settings: a field was changed"),
        ({"synthetic": "no"}, "settings: a field was changed"),
        ({"mask_bits": "x"}, "mask: no mask can be read"),
        ({"mask_bits": "eJwDAAAAAAE="}, "mask: mask_bits holds no mask of 16x16 pixels"),
        ({"mask_sha256": "ab"}, "mask: its bits are not those of mask_sha256"),
        ({"weights_sha256": "ab" * 32, "signed": True}, "weights: made with abababababab, but"),
        ({"controlnet_sha256": "cd" * 32, "signed": True}, "weights: made with the ControlNet cdcdcdcdcdcd"),
        ({"loras": '[{"sha256": "ef", "scale": 1}]', "signed": True}, "weights: made with ef, but --lora gives none"),
        ({"sampling": {"steps": 0}, "signed": True}, "settings: 0 sampling steps"),
        ({"sampling": {"size": "big"}, "signed": True}, "settings: the field size has no such value: 'big'"),
        ({"sampling": {"size": None}, "signed": True}, "settings: the field size is missing"),
        ({"sampling": {"size": 10**15}, "signed": True}, "settings: size 1000000000000000, but the picture is 16x16"),
        ({"sampling": {"guidance": None}, "signed": True}, "settings: the field guidance or control_scale is missing"),
        ({"sampling": {"guidance": float("nan")}, "signed": True}, "settings: guidance nan: use a finite number"),
        ({"sampling": {"guidance": 10**400}, "signed": True}, "settings: guidance 1000"),
        ({"sampling": {"threads": -1}, "signed": True}, "settings: threads -1: use 1 or more"),
        ({"settings": "[" * 100_000, "signed": True}, "settings: JSON that is nested too deeply"),
        ({"settings": '{"foo": 1}', "signed": True}, "settings: the field foo is not known here"),
        ({"settings": "{}", "signed": True}, "settings: the settings are no Recipe"),
        ({"edition": 3, "signed": True}, "settings: edition 3 of the settings is not known here"),
        ({"sampling": {"spin": 1}, "signed": True}, "settings: the field spin is not known here"),
        ({"settings": "[", "signed": True}, "settings: Expecting value"),
        ({"settings": "[]", "signed": True}, "settings: the settings are no table"),
        ({"synthetic": "no", "signed": True}, "synthetic: the field does not say 'made by a generative model"),
        ({"torch": "", "device": "", "signed": True}, "origin: no field torch and device"),
        ({"class": "malignant", "signed": True}, "class: malignant, but the prompt is 'Ultrasound image of a benign"),
        ({"class": "healthy", "prompt": "a breast", "signed": True}, "class: healthy, but the prompt is 'a breast'"),
        ({"sampling": {"eta": "high"}, "signed": True}, "settings: the field eta has no such value: 'high'"),
        ({"sampling": {"steps": True}, "signed": True}, "settings: the field steps has no such value: 'True'"),
        ({"sampling": {"sampler": "euler"}, "signed": True}, "settings: sampler 'euler'"),
    ],
)
def test_what_was_changed_is_named(made, verify, change, sentence):
    rewrite(made, **change)
    code, line = verify(made)
    assert code == 1
    assert line.startswith(f"{made}: {sentence}"), line


def test_forged_digests_do_not_help(made, verify):
    rewrite(made, pixels=brighter, signed=True)
    code, line = verify(made)
    assert code == 1
    assert "1 of 256 pixels differ, by up to 1: the fields name no other machine or software, but so little" in line
    rewrite(made, pixels=lambda pixels: pixels ^ 16, signed=True)
    assert "Either they are not what made these pixels, or something that they do not hold" in verify(made)[1]


def test_another_version_or_device_is_named_where_pixels_differ_and_not_where_they_are_equal(made, verify):
    rewrite(made, signed=True, torch="1.0", device="cuda, H100")
    assert verify(made)[0] == 0
    rewrite(made, pixels=brighter, signed=True)
    code, line = verify(made)
    assert code == 1
    assert "made with torch 1.0, here" in line
    assert "device cuda, H100, here cpu" in line


def test_a_picture_without_fields_cannot_be_compared(verify, masks):
    code, line = verify(masks / "benign" / "benign (1).png")
    assert code == 1
    assert "no fields of sample.py in it, so nothing can be compared" in line


def test_a_picture_that_is_missing_is_an_error(verify, tmp_path):
    assert verify(tmp_path / "none.png") == (2, f"error: {tmp_path / 'none.png'} does not exist. Check the path.")


def test_other_weights_are_told_apart(made, verify, weights, tmp_path):
    model = load_model(weights)
    next(model.unet.parameters()).data.mul_(1.01)
    save_model(model, tmp_path / "other.safetensors")
    code, line = verify(made, "--weights", tmp_path / "other.safetensors")
    assert code == 1
    assert "weights: made with" in line
    assert "other.safetensors" in line


def test_a_sample_of_a_fast_batch_verifies_within_its_rounding(run, verify, tmp_path):
    run(tmp_path / "out", "--fast", "--n", 3, "--class", "benign")
    rewrite(path := tmp_path / "out" / "0000_benign_seed1.png", pixels=brighter, signed=True)
    code, line = verify(path)
    assert (code, "1 of 256 pixels differ, by up to 1: the rounding of a batch" in line) == (0, True), line
    rewrite(path, pixels=lambda pixels: pixels ^ (np.arange(256).reshape(16, 16) % 50 == 0), signed=True)
    assert verify(path)[0] == 1, "more than rounding, though by one level"


def test_a_mask_that_is_given_is_compared(made, verify, masks):
    for name in ("benign", "benign/benign (2)_mask.png"):
        assert verify(made, "--mask", masks / name)[0] == 0
    code, line = verify(made, "--mask", masks / "benign" / "benign (1)_mask.png")
    assert code == 1
    assert "mask: made with benign (2)_mask.png, which is not --mask" in line


@pytest.mark.parametrize("options", [["--steps", 7], ["--class", "benign"], ["--out", "out"], ["--threads", 2]])
def test_what_verify_would_not_look_at_is_refused(made, verify, options):
    code, line = verify(made, *options)
    assert code == 2
    assert f"{options[0]} beside --verify does nothing" in line


@pytest.mark.parametrize("name", ["grid.png", "0001_benign_(2)_seed0_trajectory.png"])
def test_a_picture_about_samples_is_told_from_a_sample(run, verify, masks, tmp_path, name):
    run(tmp_path / "out", "--mask", masks / "benign", "--n", 1, "--trajectory")
    code, line = verify(tmp_path / "out" / name)
    assert code == 1
    assert "it is no sample and shows" in line


def test_every_field_is_under_the_digest():
    text = as_text({"a": 1, "b": [{"c": 2.5}], "d": "e"})
    assert text | {"fields_sha256": ""} == {"a": "1", "b": '[{"c": 2.5}]', "d": "e", "fields_sha256": ""}
    assert fields_sha256(text | {"a": "2"}) != text["fields_sha256"] == fields_sha256(text)


def test_a_mask_packs_to_bits_and_back():
    for size in (1, 7, 16, 128):
        mask = torch.zeros(1, size, size)
        mask[:, size // 3 :, : size // 2 + 1] = 1
        assert torch.equal(unpack_mask(pack_mask(mask), size), mask)
