"""sample.py with --init and the options of the way: edits, what they write, and that they are not taken for samples."""

import json

import numpy as np
import pytest
from PIL import Image

import sample
from ldm_us.config import BUNDLED
from ldm_us.files.atomic import sha256_file
from ldm_us.runtime.entry import run_command

BASE = BUNDLED.with_name("us128_base.safetensors")  # without a ControlNet
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


def test_inpainting_changes_the_region_and_no_pixel_outside(image, tmp_path, capsys):
    assert call("--init", image, "--inpaint", tmp_path / "region.png", *FEW, "--out", tmp_path / "out") == 0
    region = np.asarray(Image.open(tmp_path / "region.png")) > 0
    before, after = (np.asarray(Image.open(p)) for p in (image, tmp_path / "out" / "0000_normal_seed0.png"))
    assert np.array_equal(before[~region], after[~region])
    assert "--watermark" not in capsys.readouterr().err
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


def test_an_edit_says_so_in_its_fields(image, tmp_path):
    out = tmp_path / "out"
    assert call("--init", image, "--invert", "--source-class", "benign", *FEW, "--trajectory", "--out", out) == 0
    with Image.open(out / "0000_normal_seed0.png") as picture:
        fields = picture.info
    begin = json.loads(fields["settings"])["begin"]
    assert begin["from"] == "inversion"
    assert begin["init"] == {"file": "image.png", "sha256": sha256_file(image)}
    assert begin["source_prompt"] == "Ultrasound image of a benign breast"
    assert (out / "0000_normal_seed0_trajectory.png").is_file()


EDITS = {  # the options, and the files among them that --verify is told again
    "strength": (("--init", "IMAGE", "--strength", 0.5), 2),
    "region": (("--init", "IMAGE", "--inpaint", "REGION", "--resample", 2, "--no-paste"), 4),
    "inversion": (("--init", "IMAGE", "--source-mask", "REGION", "--invert", "--source-prompt", "a lesion"), 4),
    "guidance": (("--guidance-rescale", 0.7, "--guidance-interval", 0.1, 4, "--guidance", 2), 0),
    "two controls": (("--also-control", "WEIGHTS", "REGION", 0.7, "--guess", "--control-end", 0.5), 4),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_verifies_when_its_files_are_given_again(image, tmp_path, capsys, edit):
    files = {"IMAGE": image, "REGION": tmp_path / "region.png", "WEIGHTS": BUNDLED}
    options, told = EDITS[edit]
    options = [files.get(option, option) for option in options]
    asked = ("--class", "benign", "--mask", tmp_path / "region.png") if "invert" in str(options) else FEW[4:]
    assert call(*options, *FEW[:4], *asked, "--out", tmp_path / "out") == 0
    (path,) = (tmp_path / "out").glob("0*.png")
    capsys.readouterr()
    assert call("--verify", path, *options[:told]) == 0
    said = capsys.readouterr().out
    assert "pixels are those of its seed" in said
    assert ("--init image.png" in said) == ("IMAGE" in EDITS[edit][0][:2])
    if told:
        assert call("--verify", path) == 1
        assert "settings: made with --" in capsys.readouterr().out


def test_an_edit_of_another_file_does_not_verify(image, tmp_path, capsys):
    assert call("--init", image, *FEW, "--out", tmp_path / "out") == 0
    Image.new("L", (128, 128), 90).save(image)
    capsys.readouterr()
    assert call("--verify", tmp_path / "out" / "0000_normal_seed0.png", "--init", image) == 1
    assert f"settings: made with --init {image.name}" in (said := capsys.readouterr().out)
    assert f"but {image} is " in said


def test_a_second_controlnet_acts_by_its_weight(image, tmp_path):
    pixels = {}
    for weight in (None, 0, 1):
        added = () if weight is None else ("--also-control", BUNDLED, tmp_path / "region.png", weight)
        assert call(*added, *FEW, "--out", tmp_path / f"{weight}") == 0
        pixels[weight] = np.asarray(Image.open(tmp_path / f"{weight}" / "0000_normal_seed0.png"))
    assert np.array_equal(pixels[None], pixels[0])
    assert not np.array_equal(pixels[None], pixels[1])


def test_a_region_of_another_size_is_resized_with_a_note(image, tmp_path, capsys):
    with Image.open(tmp_path / "region.png") as region:
        region.resize((256, 256)).save(tmp_path / "large.png")
    assert call("--init", image, "--inpaint", tmp_path / "large.png", *FEW, "--out", tmp_path / "out") == 0
    assert "large.png of 256x256 resized to 128x128, each pixel from the nearest one." in capsys.readouterr().err


def test_maps_of_attention_and_control_are_written_for_every_seed(image, tmp_path):
    out = tmp_path / "out"
    asked = ("--class", "benign", "--mask", tmp_path / "region.png", "--n", 2, "--steps", 2)
    assert call(*asked, "--explain", "--out", out) == 0
    names = {f"0000_region_seed{seed}_{kind}.png" for kind in ("attention", "control") for seed in (0, 1)}
    assert names <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--strength", 2, "--init", "IMAGE"), "strength 2.0: use 0"),
        (("--strength", 0.5), "--strength does nothing without --init"),
        (("--guidance-rescale", 2), "guidance rescale 2.0"),
        (("--guidance-interval", 3, 1), "give the smaller noise level first"),
        (("--also-control", BUNDLED, "IMAGE", 1, "--control-start", 0.8, "--control-end", 0.2), "0.8"),
        (("--also-control", BUNDLED, "none.png", 1), "none.png does not exist"),
        (("--also-control", BUNDLED, "IMAGE", "much"), "the weight much is not a finite number"),
        (("--also-control", "none.safetensors", "IMAGE", 1), "none.safetensors: no such file"),
        (("--also-control", BASE, "IMAGE", 1), "--also-control"),
    ],
)
def test_edits_that_make_no_sense_are_one_sentence_and_nothing_is_written(image, tmp_path, capsys, options, sentence):
    asked = [image if option == "IMAGE" else option for option in options]
    assert call(*asked, *FEW, "--out", tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert not (tmp_path / "out").exists()
