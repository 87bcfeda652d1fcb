"""The commands that use a judge: train-judge, classes and masks --judge, and how they refuse."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data.organ import BREAST
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.judge.file import load_judge
from ldm_us.evaluation.judge.network import Verdict
from ldm_us.files.checkpoint import save_model
from ldm_us.files.lineage import Lineage
from ldm_us.runtime.entry import run_command
from ldm_us.training.dataset import data_hash, split_data

SHARE = 0.25  # held out by the model of these tests


def write_images(root: Path, seed: int, each: int = 6, lesions: bool = True) -> Path:
    """A BUSI folder of noise with a dark square in the lesions, other images for another seed."""
    rng = np.random.default_rng(seed)
    for label in BREAST.classes:
        (root / label).mkdir(parents=True)
        for i in range(each):
            mask = np.zeros((16, 16), np.uint8)
            if label != "normal" and lesions:
                y, x = rng.integers(1, 8, 2)
                mask[y : y + 6, x : x + 6] = 255
            image = rng.integers(100, 200, (16, 16)) - mask // 3
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{label} ({9001 + i}).png")
            Image.fromarray(mask).save(root / label / f"{label} ({9001 + i})_mask.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images to train on, and images of another seed."""
    root = tmp_path_factory.mktemp("images")
    return {name: write_images(root / name, seed) for seed, name in enumerate(("known", "new", "of the judge"))}


@pytest.fixture(scope="module")
def weights(micro, folders, tmp_path_factory):
    """A model with a ControlNet that says it was trained on `known`."""
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    model.add_controlnet()
    entry = {"stage": "vae", "held_out": SHARE, "data_sha256": data_hash(split_data([folders["known"]], SHARE)[0])}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(model, path, Lineage((entry,)).metadata())
    return path


@pytest.fixture(scope="module")
def judge_file(folders, tmp_path_factory):
    """A judge of two steps."""
    path = tmp_path_factory.mktemp("judge") / "new folder" / "judge.safetensors"
    assert call("train-judge", "--data", folders["of the judge"], "--out", path, "--steps", 2, "--size", 16) == 0
    return path


def call(*arguments: object) -> int:
    return run_command(partial(main, [str(argument) for argument in arguments]))


def test_classes_are_those_that_judge_and_model_both_know_and_none_is_refused(micro, judge_file, tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    for prompts, asked in (([["a thyroid", "benign", 2], ["a cyst", "cyst", 2]], {"benign", "all"}), ([], set())):
        entry = {"stage": "unet", "words": {"prompts": prompts}}
        save_model(LatentDiffusion(micro), weights, Lineage((entry,)).metadata())
        code = call("classes", "--weights", weights, "--judge", judge_file, "--n", 1, "--steps", 1)
        said = capsys.readouterr()
        if asked:
            assert json.loads(said.out)["accuracy"].keys() == asked
        else:
            assert code == 2
            assert "its classes are none, and this judge can name benign, malignant, normal alone" in said.err


@pytest.fixture
def printed(capsys):
    """A function: run a command that succeeds; what it prints, as JSON."""

    def run(*arguments: object) -> dict:
        capsys.readouterr()
        assert call(*arguments) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    """A function: run a command that ends with exit code 2; its one sentence."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert call(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


def test_train_judge_prints_the_figures_of_held_out_images_and_keeps_them(folders, printed, tmp_path):
    path = tmp_path / "judge.safetensors"
    shown = printed("train-judge", "--data", folders["known"], "--out", path, "--steps", 2, "--size", 16, "--seed", 4)
    train, held_out = split_data([folders["known"]], 0.1)
    _, training = load_judge(path)
    assert shown["held_out"] == training.figures
    assert (shown["trained_on"], training.figures["images"]) == (len(train), len(held_out))
    assert len(training.images) == len(train)
    assert training.data_sha256 == data_hash(train)
    assert (training.steps, training.seed, training.data) == (2, 4, ["known"])
    assert set(training.figures["confusion"]) == set(BREAST.classes)
    assert set(training.figures["dice"]) == {"all", "benign", "malignant"}


def test_the_same_command_gives_the_same_file(folders, printed, tmp_path):
    for name in ("a", "b"):
        printed("train-judge", "--data", folders["known"], "--out", tmp_path / name, "--steps", 2, "--size", 16)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_existing_judge_is_kept_unless_overwrite_says_otherwise(folders, refused, printed, tmp_path):
    path = tmp_path / "judge.safetensors"
    path.write_text("precious")
    argv = ("train-judge", "--data", folders["known"], "--out", path, "--steps", 1, "--size", 16)
    assert "exists. Choose another name, or add --overwrite" in refused(*argv)
    assert path.read_text() == "precious"
    printed(*argv, "--overwrite")
    load_judge(path)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--steps", 0), "--steps 0: use 1 or more"),
        (("--batch", 0), "--batch 0: use 1 or more"),
        (("--size", 30), "image size 30"),
        (("--seed", -1), "--seed -1"),
        (("--held-out", 0), "a judge must be measured"),
        (("--held-out", "nan"), "a judge must be measured"),
        (("--out", "."), "is a folder"),
    ],
)
def test_train_judge_refuses_numbers_that_make_no_sense(folders, refused, tmp_path, flags, sentence):
    assert sentence in refused("train-judge", "--data", folders["known"], "--out", tmp_path / "judge", *flags)
    assert not list(tmp_path.iterdir())


def test_train_judge_refuses_images_without_lesions_or_without_a_class(refused, tmp_path):
    data = write_images(tmp_path / "data", 0, lesions=False)
    argv = ("train-judge", "--data", data, "--out", tmp_path / "judge", "--size", 16)
    assert "a benign image without a lesion in its mask" in refused(*argv)
    for label in ("normal", "malignant"):
        shutil.rmtree(data / label)
    assert "all images are benign, and a judge tells classes apart" in refused(*argv)
    assert not (tmp_path / "judge").exists()


def test_classes_asks_for_n_samples_of_every_class_and_compares_each_with_its_name(
    weights, judge_file, printed, monkeypatch, tmp_path
):
    """Samples whose grey is their class, and a judge that can read that but calls every second one benign."""
    drawn, turn = [], iter(range(100))

    def draw(model, prompts, *, seeds: list[int], masks, **_settings):
        assert masks is None
        drawn.extend(seeds)
        greys = [[BREAST.prompt(label) for label in BREAST.classes].index(prompt) / 2 for prompt in prompts]
        return torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)

    def read(_network, images):
        greys = (images.mean(dim=(1, 2, 3)) * 2).round().int().tolist()
        return Verdict([BREAST.classes[grey if next(turn) % 2 else 0] for grey in greys], torch.zeros_like(images))

    monkeypatch.setattr("ldm_us.evaluation.samples.generate", draw)
    monkeypatch.setattr("ldm_us.evaluation.measuring.command.judge", read)
    grid = tmp_path / "grid.png"
    flags = ("--n", 4, "--batch", 5, "--seed", 7, "--save-grid", grid)
    shown = printed("classes", "--weights", weights, "--judge", judge_file, *flags)
    assert drawn == list(range(7, 19)), "every sample has a seed of its own"
    assert shown["samples"] == 12
    assert {label: figure["share"] for label, figure in shown["accuracy"].items()} == {
        "all": 0.667,
        "benign": 1.0,
        "malignant": 0.5,
        "normal": 0.5,
    }
    assert shown["confusion"]["normal"] == {"benign": 2, "malignant": 0, "normal": 2}
    assert shown["judge_on_held_out_images"] == load_judge(judge_file)[1].figures
    with Image.open(grid) as picture:
        assert picture.width > 4 * 16
        assert "not for diagnosis" in picture.text["synthetic"]


def test_classes_samples_the_model_and_judges_what_it_made(weights, judge_file, printed):
    shown = printed("classes", "--weights", weights, "--judge", judge_file, "--n", 1, "--steps", 2)
    assert sum(sum(row.values()) for row in shown["confusion"].values()) == shown["samples"] == 3
    assert shown["accuracy"]["all"]["n"] == 3


def test_masks_with_a_judge_finds_lesions_by_it_and_names_the_classes(weights, judge_file, folders, printed):
    argv = ("masks", "--weights", weights, "--data", folders["new"], "--unseen", "--steps", 2)
    by_rule = printed(*argv)
    by_judge = printed(*argv, "--judge", judge_file)
    assert (by_rule["found_by"], by_judge["found_by"]) == ("dark-lesion rule", "judge")
    assert by_rule["masks"] == by_judge["masks"] == 12
    assert by_rule["dice"] != by_judge["dice"]
    assert "class" not in by_rule
    assert by_judge["class"]["true"]["all"]["n"] == by_judge["class"]["real"]["all"]["n"] == 12
    assert set(by_judge["confusion"]) == {"benign", "malignant"}
    assert by_judge["judge_on_held_out_images"] == load_judge(judge_file)[1].figures


def test_masks_writes_a_picture_and_every_figure_of_each_column_where_samples_of_one_image_are_a_group(
    weights, folders, printed, tmp_path
):
    argv = ("masks", "--weights", weights, "--data", folders["new"], "--unseen", "--steps", 1)
    shown = printed(*argv, "--save-grid", tmp_path / "grid.png")
    for figure in ("images", "dice", "area_error", "absolute_area_error", "centroid_offset_pixels", "nothing_found"):
        assert set(shown[figure]) == {"true", "shuffled", "real"}
        assert all(set(one) == {"all", "benign", "malignant"} for one in shown[figure].values())
    assert shown["images"]["true"]["all"] == {"n": 12, "groups": 12}
    with Image.open(tmp_path / "grid.png") as picture:
        assert "not for diagnosis" in picture.text["synthetic"]


def test_n_masks_are_spread_over_both_lesion_classes(weights, folders, printed):
    """7 of 12, where every second or the first 7 would be unequal."""
    shown = printed("masks", "--weights", weights, "--data", folders["new"], "--unseen", "--steps", 1, "--n", 7)
    assert shown["masks"] == 7
    assert set(shown["dice"]["true"]) == {"all", "benign", "malignant"}


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        ("classes", ("--n", 0), "--n 0: use 1 or more"),
        ("classes", ("--batch", 0), "--batch 0"),
        ("classes", ("--guidance", "inf"), "--guidance inf"),
        ("classes", ("--steps", 1001), "1001 sampling steps"),
        ("classes", ("--seed", 2**63 - 2), "--seed"),
        ("classes", ("--save-grid", "no such folder/grid.png"), "is not a folder"),
        ("classes", ("--judge", "none.safetensors"), "none.safetensors: no such file. Train one with"),
        ("classes", ("--weights", "none.safetensors"), "none.safetensors: no such file"),
        ("masks", ("--judge", "none.safetensors"), "none.safetensors: no such file. Train one with"),
        ("masks", ("--save-grid", "no such folder/grid.png"), "is not a folder"),
        ("masks", ("--n", 1), "--n 1: shuffling masks needs at least 2"),
        ("masks", ("--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_is_sampled(
    weights, judge_file, folders, refused, monkeypatch, command, flags, sentence
):
    monkeypatch.setattr("ldm_us.evaluation.samples.generate", lambda *_, **__: pytest.fail("sampled"))
    data = ("--data", folders["new"], "--unseen") if command == "masks" else ()
    assert sentence in refused(command, "--weights", weights, "--judge", judge_file, *data, *flags)


def test_a_model_is_not_a_judge_nor_the_other_way_round(weights, judge_file, refused):
    assert "not a judge's" in refused("classes", "--weights", weights, "--judge", weights)
    assert "judge.safetensors: " in refused("classes", "--weights", judge_file, "--judge", judge_file)


def test_masks_refuses_images_without_lesions(weights, refused, tmp_path):
    data = write_images(tmp_path / "data", 5, each=2, lesions=False)
    sentence = refused("masks", "--weights", weights, "--data", data, "--unseen")
    assert "none of the 6 images to measure on has a lesion mask" in sentence
