"""Options of sample.py that do nothing, or not what they seem to: refused, or told in a note."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.readers.busi import read_busi
from ldm_us.runtime import processes
from ldm_us.synthesis import option_checks, options
from ldm_us.synthesis.folder import shared_source
from ldm_us.synthesis.option_checks import ignored_notes
from ldm_us.synthesis.options import parse_options
from ldm_us.synthesis.recipe import settings_of


@pytest.fixture
def image(tmp_path):
    """Something to edit, 16x16."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def region(masks):
    return masks / "benign" / "benign (1)_mask.png"


@pytest.mark.parametrize(
    "options", [["--guess"], ["--control-start", 0.2], ["--control-end", 0.5], ["--control-scale", 1]]
)
def test_limits_of_a_control_need_one(refused, tmp_path, options):
    assert f"{options[0]} does nothing without --mask" in refused(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--invert"], ["--strength", 0]])
def test_what_draws_no_noise_gives_one_sample_a_subject(run, refused, image, tmp_path, options):
    asked = ["--init", image, *options, "--steps", 1]
    for more in (["--n", 2], ["--balance", 2, 1, 0, "--n", 3]):
        assert "would be one picture. Use --n 1." in refused(tmp_path / "out", *asked, *more)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", *asked, "--balance", 1, 1, 1, "--n", 3)
    run(tmp_path / "one", *asked, "--n", 1, "--class", "benign")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--negative-prompt", "calipers", "--guidance", 1], "--negative-prompt does nothing at guidance 1."),
        (["--guidance-rescale", 0.5, "--guidance", 1], "--guidance-rescale does nothing at guidance 1."),
        (["--guidance-interval", 0, 1, "--guidance", 1], "--guidance-interval does nothing at guidance 1."),
        (["--fast", "--trajectory"], "--fast does nothing here"),
    ],
)
def test_what_does_nothing_is_told(run, tmp_path, capsys, options, sentence):
    run(tmp_path / "out", "--class", "normal", *options)
    assert f"note: {sentence}" in capsys.readouterr().err
    run(tmp_path / "plain", "--class", "normal")
    assert "note: " not in capsys.readouterr().err


def test_eta_is_refused_beside_a_sampler_that_has_none(refused, tmp_path):
    sentence = refused(tmp_path / "out", "--sampler", "ddpm", "--eta", 0.5)
    assert sentence == "--eta is of ddim and does nothing with --sampler ddpm: leave it out."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "told"), [([], True), (["--no-paste"], False)])
def test_a_watermark_is_told_to_change_pixels_that_inpainting_keeps(image, region, more, told):
    words = ["--init", image, "--inpaint", region, "--watermark", *more]
    recipe = parse_options([str(word) for word in words]).recipe
    notes = ignored_notes(recipe, None, fast=False, watermark=True)
    assert notes == ["--watermark changes pixels outside --inpaint too, by a few grey levels."] * told


def test_a_prompt_beyond_what_the_model_reads_is_told_with_the_end_of_the_part_that_counts(
    run, image, capsys, tmp_path
):
    long = "Ultrasound image of a breast, " + "fine speckle, " * 40
    texts = {"--prompt": "malignant mass", "--negative-prompt": "calipers", "--source-prompt": "a cyst"}
    options = [word for name, end in texts.items() for word in (name, long + end)]
    run(tmp_path / "out", *options, "--init", image, "--invert", "--n", 1)
    notes = [line for line in capsys.readouterr().err.splitlines() if "tokens" in line]
    assert len(notes) == 3
    for name, line in zip(("the prompt", "--negative-prompt", "--source-prompt"), notes, strict=True):
        assert f"note: {name} has 1" in line
        assert "the model reads 77: nothing counts after '..." in line
        assert line.endswith("fine speckle , fine'.")


def test_a_random_seed_is_told_written_and_taken_up_again(run, refused, monkeypatch, capsys, tmp_path):
    seeds = iter([71, 72, 73])
    monkeypatch.setattr("ldm_us.synthesis.asked.secrets.randbelow", lambda below: next(seeds))
    out, asked = tmp_path / "out", ("--class", "normal", "--n", 2)
    run(out, *asked, "--seed", "random")
    assert "note: --seed random is 71: --seed 71 draws the same." in capsys.readouterr().err
    written = {path.name: path.read_bytes() for path in out.glob("0*.png")}
    assert sorted(written) == ["0000_normal_seed71.png", "0000_normal_seed72.png"]
    assert Image.open(out / "0000_normal_seed71.png").text["seed"] == "71"
    (out / "0000_normal_seed72.png").unlink()
    run(out, *asked, "--seed", "random")
    assert f"note: --seed random is 71, as {out} has it" in capsys.readouterr().err
    run(tmp_path / "again", *asked, "--seed", 71)
    assert {path.name: path.read_bytes() for path in out.glob("0*.png")} == written
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").glob("0*.png")} == written
    run(out, *asked, "--seed", "random", "--overwrite")
    assert sorted(path.name for path in out.glob("0*.png")) == ["0000_normal_seed72.png", "0000_normal_seed73.png"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused(out, *asked, "--seed", "random").startswith("--seed random: several processes need one seed")


def test_edits_are_exact_whatever_fast_says(run, tmp_path):
    run(tmp_path / "out", "--class", "normal", "--fast", "--trajectory")
    with Image.open(tmp_path / "out" / "0000_normal_seed0.png") as picture:
        assert settings_of(picture.text)["sampling"]["exact"] is True


def test_a_source_mask_that_does_not_fit_is_refused_before_the_folder_is_begun(refused, image, region, tmp_path):
    asked = ["--init", image, "--invert", "--source-class", "normal", "--source-mask", region, "--class", "benign"]
    assert "a lesion mask for the class normal" in refused(tmp_path / "out", *asked, "--n", 1)
    assert not (tmp_path / "out").exists()


def test_all_samples_of_one_edited_image_are_one_family(run, image, masks, tmp_path):
    run(tmp_path / "out", "--init", image, "--mask", masks, "--balance", 2, 1, 1, "--n", 4, "--layout", "busi")
    assert len({record.group for record in read_busi(tmp_path / "out")}) == 1


def test_samples_that_follow_one_hint_share_it_whatever_their_masks():
    hint = {"also_control": [{"file": "f", "sha256": "f", "hint": "h", "hint_sha256": "ab", "scale": 1}]}
    lesion, normal = {"class": "benign", "mask_sha256": "cd"}, {"class": "normal", "mask_sha256": "ef"}
    assert shared_source(lesion) == "cd"
    assert shared_source(normal) is None
    assert shared_source(lesion | hint) == shared_source(normal | hint) == '["ab"]'


def test_a_class_prompt_beats_the_class_in_the_name_of_a_mask(run, region, refused, tmp_path):
    prompt = "Ultrasound image of a malignant breast"
    run(tmp_path / "out", "--mask", region, "--prompt", prompt, "--n", 1)
    with Image.open(tmp_path / "out" / "0000_benign_(1)_seed0.png") as picture:
        assert picture.text["class"] == "malignant"


@pytest.mark.parametrize(
    ("words", "sampler", "steps"),
    [
        ([], "dpm", 20),
        (["--steps", 7], "dpm", 7),
        (["--sampler", "ddim"], "ddim", 50),
        (["--sampler", "ddpm"], "ddpm", 50),
        (["--eta", 0.5], "ddim", 50),
        (["--init", "x.png", "--strength", 0.5], "dpm", 20),
        (["--init", "x.png", "--inpaint", "m.png"], "ddim", 50),
        (["--init", "x.png", "--invert"], "ddim", 50),
    ],
)
def test_unless_asked_dpm_takes_20_steps_and_ddim_50_where_it_alone_can_do_it(words, sampler, steps):
    sampling = parse_options([str(word) for word in words]).recipe.sampling
    assert (sampling.sampler, sampling.steps) == (sampler, steps)


def test_inpainting_with_a_sampler_that_remembers_is_refused(refused, tmp_path):
    sentence = refused(tmp_path / "out", "--sampler", "dpm", "--init", "x.png", "--inpaint", "m.png")
    assert sentence == "--inpaint changes what a step has made, which --sampler dpm remembers: use ddim or ddpm."


@pytest.mark.parametrize("begun", ["cpu", "cuda"])
def test_a_folder_and_a_picture_go_on_on_their_kind_of_device(run, tmp_path, monkeypatch, begun):
    run(out := tmp_path / "out", "--class", "benign")
    command = json.loads((out / "command.json").read_text())
    assert command["device"].startswith("cpu, ")
    (out / "command.json").write_text(json.dumps(command | {"device": f"{begun}, one of these"}))
    monkeypatch.setattr(processes, "device_kinds", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(option_checks, "check_device", lambda *_: None)
    monkeypatch.setattr(options, "half_precision", lambda device: "bf16")
    assert parse_options(["--out", str(out)]).device == begun
    assert parse_options(["--out", str(out), "--device", "cpu"]).device == "cpu", "what is asked for is asked for"
    assert parse_options(["--out", str(out), "--overwrite"]).device == "cuda"
    assert parse_options(["--out", str(tmp_path / "new")]).device == "cuda"
    for made in (out, out / "0000_benign_seed0.png"):
        assert parse_options(["--verify", str(made)]).device == "cpu"
    monkeypatch.setattr(processes, "device_kinds", lambda: ["cpu"])
    assert parse_options(["--out", str(out)]).device == "cpu", "the folder's own command says what differs"
