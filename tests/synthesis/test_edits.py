"""sample.py with --init and the options of the way: edits, what they write, and that they are not taken for samples."""

import numpy as np
import pytest
from PIL import Image

import sample
from ldm_us.entry import run_command

FEW = ("--n", 1, "--steps", 4, "--class", "normal")


@pytest.fixture
def image(tmp_path):
    """A grey ramp with a dark square, 128x128, and the square as a region."""
    pixels = np.tile(np.linspace(60, 180, 128), (128, 1)).astype(np.uint8)
    region = np.zeros((128, 128), np.uint8)
    region[40:72, 48:80] = 255
    pixels[region > 0] = 20
    Image.fromarray(region).save(tmp_path / "region.png")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def call(*options):
    return run_command(lambda: sample.main([str(option) for option in options]))


def test_inpainting_changes_the_region_and_no_pixel_outside(image, tmp_path):
    assert call("--init", image, "--inpaint", tmp_path / "region.png", *FEW, "--out", tmp_path / "out") == 0
    region = np.asarray(Image.open(tmp_path / "region.png")) > 0
    before, after = (np.asarray(Image.open(p)) for p in (image, tmp_path / "out" / "0000_normal_seed0.png"))
    assert np.array_equal(before[~region], after[~region])
    assert (before[region] != after[region]).mean() > 0.9


def test_strength_0_is_the_reconstruction_and_more_of_it_goes_further_away(image, tmp_path):
    before, distances = np.asarray(Image.open(image)).astype(float), []
    for strength in (0, 0.5, 1):
        out = tmp_path / str(strength)
        assert call("--init", image, "--strength", strength, *FEW, "--out", out) == 0
        after = np.asarray(Image.open(out / "0000_normal_seed0.png")).astype(float)
        distances.append(np.abs(after - before).mean())
    assert distances[0] < 12
    assert distances == sorted(distances)


def test_an_edit_says_so_in_its_fields_and_verify_does_not_take_it_for_a_plain_sample(image, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("--init", image, "--invert", "--source-class", "benign", *FEW, "--trajectory", "--out", out) == 0
    path = out / "0000_normal_seed0.png"
    fields = Image.open(path).info
    assert fields["init"] == "image.png"
    assert fields["source_class"] == "benign"
    assert (out / "trajectory_seed0.png").is_file()
    assert call("--verify", path) == 1
    assert "made with --init --invert --source-class" in capsys.readouterr().out


def test_maps_of_attention_and_control_are_written_for_every_seed(image, tmp_path):
    out = tmp_path / "out"
    asked = ("--class", "benign", "--mask", tmp_path / "region.png", "--n", 2, "--steps", 2)
    assert call(*asked, "--explain", "--out", out) == 0
    names = {f"{kind}_seed{seed}.png" for kind in ("attention", "control") for seed in (0, 1)}
    assert names <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--strength", 2, "--init", "IMAGE"), "strength 2.0: use 0"),
        (("--strength", 0.5), "--strength does nothing without --init"),
        (("--guidance-rescale", 2), "guidance rescale 2.0"),
        (("--guidance-interval", 3, 1), "give the smaller noise level first"),
        (("--control-start", 0.8, "--control-end", 0.2), "0.8"),
    ],
)
def test_edits_that_make_no_sense_are_one_sentence_and_nothing_is_written(image, tmp_path, capsys, options, sentence):
    asked = [image if option == "IMAGE" else option for option in options]
    assert call(*asked, *FEW, "--out", tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert not (tmp_path / "out").exists()
