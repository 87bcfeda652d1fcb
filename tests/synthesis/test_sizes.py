"""sample.py: --size WIDTHxHEIGHT, and masks and edits that keep their aspect where the model was trained to."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sample
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.sets.image_sets import squashed
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command
from tests.synthesis.conftest import trained

LINEAGE = {"lineage": '[{"stage": "controlnet", "data": ["phantoms"], "aspect": "bucket"}]'}


@pytest.fixture(scope="module")
def of_buckets(micro, tmp_path_factory):
    """A model of 32 pixels that was trained in buckets: 40x24, 32x24, 32x32, 24x32, 24x40."""
    torch.manual_seed(0)
    model = trained(LatentDiffusion(micro))
    model.config = model.config.__class__(**{**vars(model.config), "image_size": 32})
    path = tmp_path_factory.mktemp("buckets") / "model.safetensors"
    save_model(model, path, LINEAGE)
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Masks that lie, stand, are square, and one longer than any bucket."""
    folder = tmp_path_factory.mktemp("shapes")
    for i, (h, w) in enumerate([(30, 40), (40, 30), (32, 32), (24, 96)], start=1):
        drawn = np.zeros((h, w), np.uint8)
        drawn[h // 4 : h // 2, w // 4 : w // 2] = 255
        Image.fromarray(drawn).save(folder / f"benign ({i})_mask.png")
    return folder


@pytest.fixture
def verify(weights):
    """A function: the exit code of sample.py --verify."""

    def call(path, *options):
        words = ("--verify", path, "--weights", weights, *options)
        return run_command(partial(sample.main, [str(word) for word in words]))

    return call


def pictures(out):
    return [Image.open(path) for path in sorted(out.glob("0*.png"))]


def test_a_size_is_width_by_height_in_picture_fields_and_manifest_and_verifies(run, verify, tmp_path):
    run(tmp_path / "out", "--size", "24x16", "--class", "benign")
    assert [picture.size for picture in pictures(tmp_path / "out")] == [(24, 16)] * 2
    for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines():
        assert json.loads(line)["settings"]["sampling"]["size"] == [16, 24]
    assert verify(tmp_path / "out") == 0
    run(tmp_path / "square", "--size", "16x16", "--class", "benign")
    run(tmp_path / "side", "--size", 16, "--class", "benign")
    for one, other in zip(pictures(tmp_path / "square"), pictures(tmp_path / "side"), strict=True):
        assert one.tobytes() == other.tobytes()
        assert one.text == other.text


def test_what_is_no_size_or_no_multiple_is_refused(refused, tmp_path):
    assert "needs a multiple of 8 pixels" in refused(tmp_path / "out", "--size", "24x20")
    assert "image size 24x20" in refused(tmp_path / "out", "--size", "24x20")


def test_masks_keep_their_aspects_and_every_sample_verifies(run, verify, of_buckets, shapes, tmp_path):
    out = tmp_path / "out"
    run(out, "--weights", of_buckets, "--mask", shapes, "--n", 1)
    assert [picture.size for picture in pictures(out)] == [(32, 24), (24, 32), (32, 32), (40, 24)]
    assert all(json.loads(picture.text["settings"])["aspect"] == "bucket" for picture in pictures(out))
    assert verify(out, "--weights", of_buckets) == 0
    assert verify(next(out.glob("0001*.png")), "--weights", of_buckets, "--mask", shapes) == 0
    grid = Image.open(out / "grid.png")
    assert grid.width > 80
    assert not squashed([out])
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    run(out, "--weights", of_buckets, "--mask", shapes, "--n", 1)  # nothing is left to be done
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before


def test_a_sample_is_the_same_whatever_sizes_are_drawn_beside_it(run, of_buckets, shapes, tmp_path):
    run(tmp_path / "all", "--weights", of_buckets, "--mask", shapes, "--n", 2, "--batch", 4)
    run(tmp_path / "one", "--weights", of_buckets, "--mask", shapes / "benign (2)_mask.png", "--n", 2, "--batch", 1)
    alone, together = pictures(tmp_path / "one"), sorted((tmp_path / "all").glob("0001*.png"))
    assert [one.tobytes() for one in alone] == [Image.open(path).tobytes() for path in together]


def test_a_size_that_is_asked_for_puts_bars_around_a_mask_of_another_aspect(run, verify, of_buckets, shapes, tmp_path):
    out, mask = tmp_path / "out", shapes / "benign (1)_mask.png"
    run(out, "--weights", of_buckets, "--mask", mask, "--size", 32, "--n", 1, "--layout", "busi")
    asked = np.asarray(Image.open(next(out.glob("benign/*_mask.png")))) > 0
    assert asked.shape == (32, 32)
    rows, columns = np.nonzero(asked)
    assert np.ptp(columns) > np.ptp(rows), "it still lies"
    assert verify(out, "--weights", of_buckets) == 0


def test_a_sample_by_class_has_the_size_that_most_training_images_had(run, verify, of_buckets, tmp_path):
    entries = json.loads(LINEAGE["lineage"])
    entries[-1]["sizes"] = {"24x32": 5, "32x24": 30, "32x32": 9}
    path, out = tmp_path / "model.safetensors", tmp_path / "out"
    with safe_open(of_buckets, "pt") as file:
        save_file(load_file(of_buckets), path, file.metadata() | {"lineage": json.dumps(entries)})
    run(out, "--weights", path, "--class", "benign")
    assert {picture.size for picture in pictures(out)} == {(32, 24)}
    assert verify(next(out.glob("0*.png")), "--weights", path) == 0
    run(tmp_path / "square", "--weights", path, "--class", "benign", "--size", 32)
    assert {picture.size for picture in pictures(tmp_path / "square")} == {(32, 32)}
    run(tmp_path / "silent", "--weights", of_buckets, "--class", "benign")
    assert {picture.size for picture in pictures(tmp_path / "silent")} == {(32, 32)}


def test_an_edit_keeps_the_aspect_of_its_image(run, verify, of_buckets, tmp_path, capsys):
    grey = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "image.png")
    edit = ("--weights", of_buckets, "--init", tmp_path / "image.png")
    run(tmp_path / "out", *edit, "--class", "benign", "--n", 1)
    (picture,) = pictures(tmp_path / "out")
    assert picture.size == (32, 24)
    assert "image.png of 80x60 resized to 32x24." in capsys.readouterr().err
    assert verify(next((tmp_path / "out").glob("0*.png")), *edit) == 0


def test_a_model_of_squashed_images_squashes_masks_as_it_always_did(run, verify, shapes, tmp_path):
    out = tmp_path / "out"
    run(out, "--mask", shapes, "--n", 1)
    assert {picture.size for picture in pictures(out)} == {(16, 16)}
    assert all("aspect" not in json.loads(picture.text["settings"]) for picture in pictures(out))
    assert verify(out) == 0
    assert squashed([out])
