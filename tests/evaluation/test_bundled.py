"""The models that come with the package: small, whole, of stated origin, and doing what their card says."""

import hashlib
import json

import pytest
import torch

import sample
from ldm_us.config import BUNDLED
from ldm_us.data.organ import BREAST
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage

WEIGHTS = BUNDLED.parent
BASE = WEIGHTS / "us128_base.safetensors"


@pytest.fixture(scope="module")
def model():
    return load_model(BUNDLED)


def test_all_bundled_weights_together_stay_under_20_megabytes():
    files = list(WEIGHTS.glob("*.safetensors"))
    assert {path.name for path in files} == {"us128.safetensors", "us128_base.safetensors", "judge.safetensors"}
    assert sum(path.stat().st_size for path in files) <= 20e6


def test_the_card_names_every_file_by_its_sha256():
    card = (WEIGHTS / "README.md").read_text()
    for path in WEIGHTS.glob("*.safetensors"):
        assert path.name in card
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert "not for diagnosis" in card


def test_the_model_carries_the_lineage_of_its_four_trainings_and_the_base_that_of_two():
    of_model, of_base = (read_lineage(read_metadata(path)).entries for path in (BUNDLED, BASE))
    assert [entry["stage"] for entry in of_model] == ["vae", "unet", "unet", "controlnet"]
    assert of_model[:2] == of_base
    assert len({entry["data_sha256"] for entry in of_model}) == 1


def test_the_base_has_the_autoencoder_of_the_model_and_no_controlnet(model):
    base = load_model(BASE)
    assert base.controlnet is None
    assert model.controlnet is not None
    for ours, its in zip(model.vae.parameters(), base.vae.parameters(), strict=True):
        assert torch.equal(ours, its)


def test_sample_py_needs_no_weights(tmp_path):
    assert sample.main(["--class", "benign", "--n", "1", "--steps", "2", "--out", str(tmp_path / "out")]) == 0
    (line,) = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["weights_sha256"] == hashlib.sha256(BUNDLED.read_bytes()).hexdigest()


def test_a_lesion_is_darkest_where_its_mask_is_and_moves_with_it(model):
    z, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    masks = torch.stack([((z - 55) ** 2 / 18**2 + (x - at) ** 2 / 24**2 < 1).float()[None] for at in (34, 94)])
    prompts = [BREAST.prompt("benign")] * 2
    images = generate(model, prompts, masks=masks, seeds=[0, 0], sampling=Sampling(steps=20))
    left, right = ([image[:, mask[0].bool()].mean().item() for mask in masks] for image in images)
    assert left[0] < left[1] - 0.1
    assert right[1] < right[0] - 0.1
