"""A model that was taught other words than the breast's: from captions to samples, and from samples to captions."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

import sample
from ldm_us.data.readers.busi import read_busi
from ldm_us.data.words import words_of
from ldm_us.evaluation.sets.image_sets import read_set
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.weights import ScaledLoRA, Source, taught_words
from tests.conftest import read_run
from weights_convert.__main__ import main as convert

PROMPTS = {"benign": "Ultrasound image of a benign thyroid nodule", "malignant": "a malignant thyroid nodule"}


@pytest.fixture(scope="module")
def thyroid(tmp_path_factory):
    """An imagefolder of noise with captions and classes."""
    root, lines, rng = tmp_path_factory.mktemp("thyroid"), [], np.random.default_rng(0)
    for i in range(12):
        label = ("benign", "malignant")[i % 2]
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(root / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": PROMPTS[label], "class": label}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def call(capsys):
    """A function: sample.py for one step; -> exit code and what it said on standard error."""

    def sampled(weights, out, *options):
        capsys.readouterr()
        words = ["--weights", weights, "--steps", 1, "--out", out, *options]
        return run_command(partial(sample.main, [str(word) for word in words])), capsys.readouterr().err

    return sampled


def prompts_in(out):
    return [json.loads(line)["prompt"] for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_a_model_trained_on_captions_is_sampled_by_its_own_classes_and_its_samples_are_read_by_their_prompts(
    of_thyroid, call, tmp_path
):
    weights = of_thyroid.path
    assert call(weights, tmp_path / "all", "--n", 1)[0] == 0
    assert prompts_in(tmp_path / "all") == list(PROMPTS.values())
    assert call(weights, tmp_path / "busi", "--balance", 2, 1, "--layout", "busi")[0] == 0
    assert [record.prompt for record in read_busi(tmp_path / "busi")] == [
        PROMPTS[c] for c in ("benign",) * 2 + ("malignant",)
    ]
    assert call(weights, tmp_path / "busi", "--balance", 1, 0, "--layout", "busi", "--overwrite")[0] == 0
    assert not (tmp_path / "busi" / "malignant").exists(), "a class folder without an image is no BUSI"
    code, said = call(weights, tmp_path / "none", "--class", "normal")
    assert (code, said.count("\n")) == (2, 1)
    assert "--class normal: unknown to" in said
    code, said = call(weights, tmp_path / "prompt", "--n", 1, "--prompt", "Ultrasound image of a benign breast")
    assert "never trained on this prompt. Nearest are: 'Ultrasound image of a benign thyroid nodule'" in said
    assert code == 0
    assert not (tmp_path / "none").exists()


def test_a_lora_brings_the_words_it_was_taught_to_the_model_it_is_merged_into(
    run, chain, of_thyroid, thyroid, tmp_path
):
    lora = (
        run("unet", tmp_path / "lora", "--lora", 2, weights=chain["unet"].path, data=thyroid).out / "lora.safetensors"
    )
    words = taught_words(Source(chain["unet"].path, loras=[ScaledLoRA(lora)]))
    assert words.classes == ("benign", "malignant", "normal")
    assert [words.prompt(label) for label in ("benign", "malignant")] == list(PROMPTS.values())
    assert words.notes("Ultrasound image of a benign breast", []) == []
    assert (
        taught_words(Source(chain["unet"].path, of_thyroid.path)).taught
        == taught_words(Source(chain["unet"].path)).taught
    )


@pytest.fixture(scope="module")
def of_thyroid(run, thyroid, tmp_path_factory):
    """Two steps on these images."""
    out = tmp_path_factory.mktemp("runs") / "unet"
    run("unet", out, data=thyroid)
    return read_run(out)


def test_an_import_and_an_export_keep_the_words(of_thyroid, tmp_path):
    whole, exported = tmp_path / "whole.safetensors", tmp_path / "exported.safetensors"
    assert convert(["import", str(of_thyroid.path), "--out", str(whole)]) == 0
    assert convert(["export", str(whole), "--format", "compvis", "--out", str(exported)]) == 0
    assert convert(["import", str(exported), "--out", str(tmp_path / "back.safetensors")]) == 0
    expected = words_of(of_thyroid.path)
    for path in (whole, tmp_path / "back.safetensors"):
        kept = words_of(path)
        assert (kept.taught, kept.digests, kept.complete) == (expected.taught, expected.digests, True)


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """Class folders of noise with a description: one class has a name of two words, another nothing to draw."""
    root, rng = tmp_path_factory.mktemp("hearts"), np.random.default_rng(1)
    for label in ("Two chambers", "healthy"):
        (root / label).mkdir()
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(root / label / f"{label} {i}.png")
            if label != "healthy":
                Image.fromarray(np.eye(16, k=i) > 0).resize((16, 16)).save(root / label / f"{label} {i}_mask.png")
    about = {"template": "a heart, {label}", "classes": ["healthy", "Two chambers"], "without": ["healthy"]}
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def test_a_described_organ_goes_from_its_folder_to_samples_that_are_read_and_verified(
    run, hearts, call, tmp_path, capsys
):
    unet = run("unet", tmp_path / "unet", data=hearts).path
    weights = run("controlnet", tmp_path / "controlnet", data=hearts, weights=unet).path
    words = words_of(weights)
    assert words.classes == ("Two chambers", "healthy")
    assert [words.shows(label) for label in words.classes] == [True, False]
    mask = tmp_path / "masks" / "two chambers (1)_mask.png"
    mask.parent.mkdir()
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(mask)
    out = tmp_path / "samples"
    assert call(weights, out, "--mask", mask.parent, "--balance", 2, 1, "--layout", "busi")[0] == 0
    records = read_busi(out)
    assert [(r.label, r.prompt, r.shows) for r in records] == [
        *[("Two chambers", "a heart, Two chambers", True)] * 2,
        ("healthy", "a heart, healthy", False),
    ]
    assert records[0].group == records[1].group != records[2].group
    assert read_set([out]) == records
    assert run_command(partial(sample.main, ["--weights", str(weights), "--verify", str(out)])) == 0
    assert "an empty mask for the class" not in capsys.readouterr().err
    code, said = call(weights, tmp_path / "no", "--mask", mask, "--class", "healthy")
    assert (code, "a lesion mask for the class healthy" in said) == (2, True)
