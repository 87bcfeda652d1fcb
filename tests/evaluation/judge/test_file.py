"""The file of a judge: exact, whole or refused, and it names the images that the judge has seen."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_us.data.readers.busi import read_busi
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.judge.file import (
    Training,
    bytes_digest,
    image_digests,
    load_judge,
    save_judge,
    seen_in_training,
)
from ldm_us.evaluation.judge.network import Judge, JudgeConfig, fresh_judge
from ldm_us.files.checkpoint import save_model

SIDE = 32
TRAINING = Training(3, 2, 0, 0.1, ["busi"], "a" * 64, ["0123456789abcdef"], {"images": 1})


@pytest.fixture
def network() -> Judge:
    return fresh_judge(JudgeConfig(size=SIDE), 0).eval().requires_grad_(False)


def test_a_judge_comes_back_from_its_file_exactly(network, tmp_path):
    path = tmp_path / "judge.safetensors"
    save_judge(network, path, TRAINING)
    loaded, training = load_judge(path)
    assert training == TRAINING
    assert loaded.config == network.config
    images = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for got, expected in zip(loaded(images), network(images), strict=True):
        assert torch.equal(got, expected)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    save_judge(loaded, tmp_path / "again.safetensors", training)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.fixture
def judge_file(network, tmp_path):
    """A function of changes to tensors and to what the file says: a judge's file with them."""

    def write(tensors, about):
        path = tmp_path / "judge.safetensors"
        save_judge(network, path, TRAINING)
        state = load_file(path)
        with safe_open(path, "pt") as file:
            values = json.loads(file.metadata()["judge"])
        save_file(tensors(state), path, {"judge": json.dumps(about(values))})
        return path

    return write


def without(name):
    return lambda values: {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "about", "sentence"),
    [
        (without("stem.bias"), dict, r"1 tensors missing, unknown or of another shape \(stem.bias\)"),
        (lambda state: state | {"more": torch.zeros(1)}, dict, r"1 tensors .* \(more\)"),
        (lambda state: state | {"stem.bias": torch.zeros(3)}, dict, r"1 tensors .* \(stem.bias\)"),
        (dict, without("config"), "cannot be read"),
        (dict, without("figures"), "cannot be read"),
        (dict, lambda values: values | {"colour": 1}, "cannot be read"),
        (dict, lambda values: values | {"classes": ["benign"]}, "its classes are"),
        (dict, lambda values: values | {"classes": ["benign", "../a"]}, "its classes are"),
        (dict, lambda values: values | {"classes": ["a", "b"]}, r"2 tensors .* \(to_class"),
        (dict, lambda values: values | {"config": values["config"] | {"groups": 7}}, "cannot be read"),
        (dict, lambda values: values | {"config": values["config"] | {"size": 33}}, "image size 33"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(judge_file, tensors, about, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        load_judge(judge_file(tensors, about))
    assert "\n" not in str(error.value)


def test_files_of_other_kinds_are_refused_in_one_sentence(micro, tmp_path):
    with pytest.raises(ValueError, match=r"no such file\. Train one with"):
        load_judge(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_judge(tmp_path / "text.safetensors")
    save_model(LatentDiffusion(micro), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="but not a judge's"):
        load_judge(tmp_path / "model.safetensors")


def test_a_full_disk_leaves_the_old_judge_in_place(network, tmp_path, full_disk):
    path = tmp_path / "judge.safetensors"
    save_judge(network, path, TRAINING)
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        full_disk("judge", 1000, patch)
        with pytest.raises(OSError, match="No space left"):
            save_judge(network, path, TRAINING)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_image_seen_in_training_is_known_by_its_pixels_and_in_older_files_by_its_bytes(busi, tmp_path):
    records = read_busi(busi)
    copy, saved_anew = tmp_path / "other name.png", tmp_path / "other format.bmp"
    copy.write_bytes(records[0].image.read_bytes())
    with Image.open(copy) as picture:
        picture.save(saved_anew)
    copied, same_pixels = (replace(records[0], image=path) for path in (copy, saved_anew))
    given = [copied, same_pixels, records[1]]
    assert seen_in_training(given, set(image_digests(records[:1]))) == [copied, same_pixels]
    assert seen_in_training(given, {bytes_digest(records[0])}) == [copied]
    assert len(set(image_digests(records))) == len(records)
