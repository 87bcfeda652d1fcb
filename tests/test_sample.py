"""sample.py: what it writes, that a sample depends on its seed alone, and how it refuses bad input."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.config import BUNDLED, US128
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command
from tests.synthesis.conftest import OLD_LINEAGE

SMALL = ["--size", "32", "--steps", "2", "--n", "2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A us128 model of random weights, with a ControlNet whose zero convolutions are not zero."""
    torch.manual_seed(0)
    model = LatentDiffusion(US128)
    for parameter in model.add_controlnet().zero_convs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for parameter in model.controlnet.hint_network.conv_out.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(model, path, OLD_LINEAGE)
    return path


@pytest.fixture
def mask(tmp_path):
    drawn = np.zeros((40, 60), dtype=np.uint8)
    drawn[10:30, 20:50] = 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


def run(weights, out, *options):
    return sample.main(["--weights", str(weights), "--out", str(out), *SMALL, *map(str, options)])


def refusal(capsys, *argv):
    """Run sample.py as its command line does; return exit code and the line on standard error."""
    code = run_command(partial(sample.main, [str(word) for word in argv]))
    return code, capsys.readouterr().err.strip().splitlines()


def pixels(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))}


def test_without_a_class_all_three_are_sampled_with_a_manifest_and_a_grid(weights, tmp_path):
    assert run(weights, tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"].split()[-2] for line in lines] == ["benign"] * 2 + ["malignant"] * 2 + ["normal"] * 2
    for line in lines:
        with Image.open(tmp_path / "out" / line["file_name"]) as picture:
            assert (picture.mode, picture.size) == ("L", (32, 32))
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert min(grid.size) > 2 * 32


def test_without_out_the_first_free_folder_is_taken(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    for name in ("samples", "samples-2", "samples-3"):
        assert sample.main(["--weights", str(weights), *SMALL, "--class", "normal", "--n", "1"]) == 0
        assert (tmp_path / name / "grid.png").exists()


def test_every_png_carries_what_made_it(weights, mask, tmp_path):
    run(weights, tmp_path / "out", "--class", "benign", "--mask", mask, "--seed", 5, "--guidance", 2.5)
    with Image.open(tmp_path / "out" / "0000_drawn_seed6.png") as picture:
        fields = picture.text
    assert fields["seed"] == "6"
    assert json.loads(fields["settings"])["sampling"]["guidance"] == 2.5
    assert fields["prompt"] == "Ultrasound image of a benign breast"
    assert fields["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert len(fields["mask_sha256"]) == 64
    assert "not for diagnosis" in fields["synthetic"]


def test_the_same_command_gives_the_same_bytes(weights, tmp_path):
    run(weights, tmp_path / "a", "--class", "benign")
    run(weights, tmp_path / "b", "--class", "benign")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


@pytest.mark.parametrize("noise", [("--eta", 1), ("--sampler", "ddpm")])
def test_a_sample_depends_on_its_seed_and_not_on_its_batch(weights, tmp_path, noise):
    run(weights, tmp_path / "all", "--n", 3, "--batch", 3, "--class", "benign", *noise)
    run(weights, tmp_path / "alone", "--n", 1, "--seed", 2, "--class", "benign", *noise)
    together = pixels(tmp_path / "all")
    assert len({image.tobytes() for image in together.values()}) == 3
    alone = pixels(tmp_path / "alone")["0000_benign_seed2.png"]
    assert np.array_equal(together["0000_benign_seed2.png"], alone)


def test_the_mask_changes_the_sample_and_a_control_scale_of_0_takes_it_out(weights, mask, tmp_path):
    asked = ("--class", "benign", "--n", 1, "--guidance", 2)
    run(weights, tmp_path / "plain", *asked)
    run(weights, tmp_path / "mask", *asked, "--mask", mask)
    run(weights, tmp_path / "off", *asked, "--mask", mask, "--control-scale", 0)
    plain, masked, off = (next(iter(pixels(tmp_path / name).values())) for name in ("plain", "mask", "off"))
    assert not np.array_equal(plain, masked)
    assert np.array_equal(plain, off)


def test_a_mask_brings_the_models_own_guidance_and_scale(weights, mask, tmp_path):
    """Those of us128: strong text would draw lesions beside the masked one."""
    run(weights, tmp_path / "plain", "--class", "benign", "--n", 1)
    run(weights, tmp_path / "mask", "--class", "benign", "--n", 1, "--mask", mask)
    rows = [json.loads((tmp_path / name / "manifest.jsonl").read_text()) for name in ("plain", "mask")]
    settings = [row["settings"]["sampling"] for row in rows]
    assert [each["guidance"] for each in settings] == [3.0, 1.0]
    assert settings[1]["control_scale"] == 2.0


def test_info_tells_parts_and_lineage_and_samples_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--info"]) == 0
    printed = capsys.readouterr().out
    assert "us128, 128 pixels, predicts eps" in printed
    assert "controlnet       739,440 parameters" in printed
    assert [line for line in printed.splitlines() if line.startswith("stage ")] == [
        "stage 1: vae", "stage 2: unet", "stage 3: unet", "stage 4: controlnet"
    ]  # fmt: skip
    assert sha256_file(BUNDLED) in printed
    assert list(tmp_path.iterdir()) == []


def test_a_negative_prompt_changes_the_sample_and_guidance_1_ignores_it(weights, tmp_path):
    for name, options in {
        "plain": ["--guidance", 4],
        "negative": ["--guidance", 4, "--negative-prompt", "calipers"],
        "one": ["--guidance", 1],
        "one_negative": ["--guidance", 1, "--negative-prompt", "calipers"],
    }.items():
        run(weights, tmp_path / name, "--prompt", "a breast", "--n", 1, *options)
    images = {path.name: next(iter(pixels(path).values())) for path in tmp_path.iterdir()}
    assert not np.array_equal(images["plain"], images["negative"])
    assert np.array_equal(images["one"], images["one_negative"])


def test_a_folder_of_masks_gives_one_row_each_with_mask_and_original(weights, tmp_path):
    folder = tmp_path / "benign"
    folder.mkdir()
    for number in (1, 2):
        Image.new("L", (32, 32), 100).save(folder / f"benign ({number}).png")
        Image.new("1", (32, 32), 1).save(folder / f"benign ({number})_mask.png")
    run(weights, tmp_path / "out", "--mask", folder, "--n", 1)
    assert sorted(pixels(tmp_path / "out")) == ["0000_benign_(1)_seed0.png", "0001_benign_(2)_seed0.png"]
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    assert grid.shape[1] > 3 * 32
    assert (grid == 100).sum() >= 2 * 32 * 32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", 0], "0 sampling steps: the schedule has 1000 timesteps. Use 1..1000"),
        (["--steps", 1001], "1001 sampling steps"),
        (["--class", "tumour"], "--class tumour: unknown"),
        (["--n", 0], "--n 0"),
        (["--batch", 0], "--batch 0"),
        (["--eta", -1], "--eta -1"),
        (["--eta", 50], "--eta 50"),
        (["--eta", "nan"], "--eta nan"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--control-scale", "inf"], "--control-scale inf"),
        (["--seed", -1], "--seed -1"),
        (["--seed", 10**20], "--seed"),
        (["--size", 0], "image size 0"),
        (["--device", "meta"], "--device meta: not available here"),
        (["--size", 100], "image size 100: us128 needs a multiple of 16"),
        (["--mask", "missing.png", "--class", "benign"], "missing.png"),
        (["--device", "nonsense"], "--device nonsense: not available here"),
        (["--weights", "missing.safetensors"], "missing.safetensors: no such file"),
    ],
)
def test_bad_options_end_with_one_sentence_exit_code_2_and_no_folder(weights, tmp_path, capsys, options, sentence):
    code, lines = refusal(capsys, "--weights", weights, "--out", tmp_path / "out", *options)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone_unless_overwrite_is_given(weights, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("keep me")
    code, lines = refusal(capsys, "--weights", weights, "--out", tmp_path, *SMALL)
    assert code == 2
    assert "not empty" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert run(weights, tmp_path, "--class", "benign", "--overwrite") == 0


def test_a_mask_without_a_controlnet_is_refused(mask, tmp_path, capsys):
    save_model(LatentDiffusion(US128), tmp_path / "plain.safetensors")
    argv = ["--weights", tmp_path / "plain.safetensors", "--out", tmp_path / "out", "--class", "benign", "--mask", mask]
    code, lines = refusal(capsys, *argv)
    assert code == 2
    assert "no ControlNet" in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_mask_that_does_not_decode_is_named(weights, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    argv = ["--weights", weights, "--out", tmp_path / "out", "--class", "benign", "--mask", tmp_path / "broken.png"]
    code, lines = refusal(capsys, *argv)
    assert code == 2
    assert "broken.png" in lines[0]


def test_an_original_of_another_size_than_its_mask_is_refused_before_anything_is_sampled(weights, tmp_path, capsys):
    Image.new("L", (300, 10), 100).save(tmp_path / "benign (1).png")
    Image.new("1", (32, 32), 1).save(tmp_path / "benign (1)_mask.png")
    argv = ["--weights", weights, "--out", tmp_path / "out", "--mask", tmp_path / "benign (1)_mask.png", *SMALL]
    code, lines = refusal(capsys, *argv)
    assert code == 2
    assert "benign (1)_mask.png is 32x32" in lines[0]
    assert not (tmp_path / "out").exists()
