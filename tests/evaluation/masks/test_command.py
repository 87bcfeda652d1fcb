"""mask-fidelity: samples in folders against the masks beside them, a floor, a ceiling, and how it refuses."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.data.readers.busi import read_busi
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.judge.file import Training, image_digests, load_judge, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, Verdict, fresh_judge
from ldm_us.evaluation.masks.fidelity import other_of_its_class
from ldm_us.evaluation.sets.evaluated_images import not_seen_by_judge
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command

SIDE = 16
DARK = 100  # grey levels below which the stand-in of a judge sees a lesion


def write_set(root: Path, boxes: dict[str, list[tuple[int, int, int, int] | None]], seed: int) -> Path:
    """A BUSI folder: bright noise, and a dark box (top, left, height, width) where there is one."""
    rng = np.random.default_rng(seed)
    for label, of_class in boxes.items():
        (root / label).mkdir(parents=True)
        for i, box in enumerate(of_class):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            if box is not None:
                top, left, h, w = box
                mask[top : top + h, left : left + w] = 255
            image = np.where(mask > 0, 40, rng.integers(140, 250, (SIDE, SIDE))).astype(np.uint8)
            Image.fromarray(image).save(root / label / f"{label} ({9001 + i}).png")
            Image.fromarray(mask).save(root / label / f"{label} ({9001 + i})_mask.png")
    return root


BOXES = {
    "benign": [(1, 1, 4, 4), (1, 1, 4, 4), (9, 9, 5, 5), (9, 1, 6, 4)],
    "malignant": [(1, 9, 6, 6), (8, 2, 7, 7)],
    "normal": [None, None],
}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "real", BOXES, 0)


@pytest.fixture
def generated(tmp_path) -> Path:
    return write_set(tmp_path / "generated", BOXES, 1)


@pytest.fixture
def judge_of(tmp_path):
    """A function of records: the file of a fresh judge that says it was trained on them."""

    def write(records) -> Path:
        path = tmp_path / "judge.safetensors"
        training = Training(1, 1, 0, 0.5, ["x"], "0" * 64, image_digests(records), {"images": 2})
        save_judge(fresh_judge(JudgeConfig(size=SIDE), 0), path, training)
        return path

    return write


@pytest.fixture
def dark_reader(monkeypatch) -> None:
    """A judge that reads the dark boxes of these images exactly."""

    def read(_network, images):
        return Verdict(["benign"] * len(images), (images < DARK / 255).float())

    monkeypatch.setattr("ldm_us.evaluation.masks.command.judge", read)


def call(*words: object) -> int:
    return run_command(partial(main, ["mask-fidelity", *(str(word) for word in words)]))


@pytest.fixture
def printed(capsys):
    """A function: measure; what is printed, as JSON."""

    def run(*words: object) -> dict:
        capsys.readouterr()
        assert call(*words) == 0
        return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))

    return run


@pytest.fixture
def refused(capsys):
    """A function: measure, require exit code 2; its one sentence."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert call(*words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def test_a_perfect_finder_gives_samples_1_others_masks_0_and_real_images_1(
    generated, real, judge_of, dark_reader, printed, tmp_path
):
    """The masks of a class are disjoint, but for two samples of one mask: a group, so never each other's floor."""
    grid = tmp_path / "grid.png"
    flags = ("--judge", judge_of([]), "--save-grid", grid, "--batch", 3)
    shown = printed("--generated", generated, "--real", real, *flags)
    assert (shown["samples"], shown["size"], shown["found_by"]) == (8, SIDE, "judge")
    assert shown["images"]["true"]["benign"] == {"n": 4, "groups": 3}
    for label in ("all", "benign", "malignant"):
        assert shown["dice"]["true"][label]["mean"] == shown["dice"]["real"][label]["mean"] == 1
        assert (
            shown["area_error"]["true"][label]["median"]
            == shown["centroid_offset_pixels"]["true"][label]["median"]
            == 0
        )
        assert shown["dice"]["shuffled"][label]["mean"] == 0
        assert shown["centroid_offset_pixels"]["shuffled"][label]["median"] > 5
        assert shown["nothing_found"]["true"][label]["share"] == 0
    assert shown["nothing_found_where_nothing_was_asked"]["true"]["share"] == 1
    with Image.open(grid) as picture:
        assert "not for diagnosis" in picture.text["synthetic"]


def test_a_shifted_sample_and_one_without_its_lesion_show_in_the_figures(
    generated, real, judge_of, dark_reader, printed
):
    first, second = generated / "malignant/malignant (9001).png", generated / "malignant/malignant (9002).png"
    pixels = np.asarray(Image.open(first))
    Image.fromarray(np.roll(pixels, (3, -4), axis=(0, 1))).save(first)  # 3 down, 4 to the left
    Image.new("L", (SIDE, SIDE), 200).save(second)
    shown = printed("--generated", generated, "--real", real, "--judge", judge_of([]))
    assert shown["centroid_offset_pixels"]["true"]["malignant"]["median"] == 5
    assert shown["nothing_found"]["true"]["malignant"]["share"] == 0.5
    assert shown["area_error"]["true"]["malignant"]["median"] == -0.5, "of 0 and -1"
    assert shown["dice"]["true"]["malignant"]["mean"] == pytest.approx((2 * 3 * 2 / 72) / 2, abs=5e-4)
    assert shown["dice"]["real"]["malignant"]["mean"] == 1


def test_the_ceiling_is_of_images_that_the_judge_does_not_know(generated, real, judge_of, dark_reader, printed):
    records = read_busi(real)
    known = [r for r in records if r.image.name in ("benign (9001).png", "malignant (9002).png")]
    shown = printed("--generated", generated, "--real", real, "--judge", judge_of(known))
    assert {label: one["n"] for label, one in shown["images"]["real"].items()} == {
        "all": 4,
        "benign": 3,
        "malignant": 1,
    }
    assert shown["judge_on_held_out_images"] == {"images": 2}


def test_near_duplicates_of_what_the_judge_knows_are_no_ceiling(tmp_path, judge_of):
    """A known image, a brighter copy of it, and another one."""
    rng = np.random.default_rng(0)
    (tmp_path / "data/benign").mkdir(parents=True)
    pixels = rng.integers(0, 200, (2, 48, 48))
    for i, image in enumerate((pixels[0], pixels[0] + 20, pixels[1])):
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "data/benign" / f"benign ({9001 + i}).png")
    records = read_busi(tmp_path / "data")
    path = judge_of(records[:1])
    assert [r.image.name for r in not_seen_by_judge(path, load_judge(path)[1], [tmp_path / "data"])] == [
        "benign (9003).png"
    ]


def test_samples_of_sample_py_are_measured_by_a_trained_judge_and_by_the_rule(micro, real, tmp_path, capsys, printed):
    """End to end on micro networks: the figures mean nothing, but every sample, mask and real image is counted."""
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    model.add_controlnet()
    save_model(model, tmp_path / "model.safetensors")
    asked = ["--mask", real, "--balance", 4, 2, 1, "--layout", "busi", "--steps", 1, "--out", tmp_path / "samples"]
    words = ["--weights", tmp_path / "model.safetensors", *asked]
    assert run_command(partial(sample.main, [str(word) for word in words])) == 0
    other = write_set(tmp_path / "other", BOXES, 2)
    train = ["train-judge", "--data", other, "--size", SIDE, "--steps", 1, "--out", tmp_path / "judge.safetensors"]
    assert main([str(word) for word in train]) == 0
    argv = ("--generated", tmp_path / "samples", "--real", real)
    for found_by, flags in (("judge", ("--judge", tmp_path / "judge.safetensors")), ("dark-lesion rule", ())):
        shown = printed(*argv, *flags)
        assert (shown["samples"], shown["found_by"]) == (7, found_by)
        assert {name: one["all"] for name, one in shown["images"].items()} == {
            "true": {"n": 6, "groups": 5},
            "shuffled": {"n": 6, "groups": 5},
            "real": {"n": 6, "groups": 6},
        }


def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(generated, real, judge_of, refused, tmp_path):
    argv = ("--generated", generated, "--real", real, "--judge", judge_of([]))
    assert "--batch 0: use 1 or more" in refused(*argv, "--batch", 0)
    assert "is not a folder. Make it first" in refused(*argv, "--save-grid", tmp_path / "no" / "grid.png")
    mask = generated / "benign/benign (9003)_mask.png"
    Image.new("L", (SIDE, SIDE)).save(mask)
    assert "benign (9003).png is empty at 16x16 pixels, but its class is benign" in refused(*argv)
    Image.new("L", (20, 20), 255).save(mask)
    assert "benign (9003)_mask.png is 20x20, but its image" in refused(*argv)
    mask.unlink()
    assert "benign (9003).png has no mask beside it" in refused(*argv)
    Image.new("L", (20, 20), 90).save(generated / "benign/benign (9003).png")
    assert "--generated: images of 16x16, 20x20 pixels" in refused(*argv)


def test_a_normal_sample_with_a_lesion_in_its_mask_is_refused(generated, real, judge_of, refused):
    mask = generated / "normal/normal (9001)_mask.png"
    Image.new("L", (SIDE, SIDE), 255).save(mask)
    argv = ("--generated", generated, "--real", real, "--judge", judge_of([]))
    assert "normal (9001).png is normal, but its mask marks a lesion" in refused(*argv)


def test_a_judge_that_knows_all_real_images_or_some_generated_ones_is_refused(generated, real, judge_of, refused):
    argv = ("--generated", generated, "--real", real, "--judge")
    assert "was trained on all 8 images of --real" in refused(*argv, judge_of(read_busi(real)))
    benign = [record for record in read_busi(real) if record.label == "benign"]
    assert "--real: no benign image that the judge was not trained on" in refused(*argv, judge_of(benign))
    assert "was trained on 1 of the 8 images to measure on" in refused(*argv, judge_of(read_busi(generated)[:1]))
    assert "pixel for pixel" in refused("--generated", real, "--real", real)


def test_a_class_with_a_single_mask_cannot_be_shuffled_and_one_without_samples_is_left_out(
    generated, real, judge_of, dark_reader, refused, printed
):
    argv = ("--generated", generated, "--real", real, "--judge", judge_of([]))
    for path in (generated / "benign").glob("benign (900[34])*"):
        path.unlink()
    assert "2 of the 2 benign images with a lesion mask have the same one" in refused(*argv)
    shutil.rmtree(generated / "benign")
    assert set(printed(*argv)["dice"]["real"]) == {"all", "malignant"}
    (generated / "malignant/malignant (9002).png").unlink()
    assert "1 malignant image with a lesion mask" in refused(*argv)


def test_others_are_of_another_group_and_of_the_class_wherever_a_group_fills_no_more_than_half():
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels = rng.choice(["a", "b"], 24).tolist()
        groups = [f"{label}{rng.integers(6)}" for label in labels]
        sizes = {label: labels.count(label) for label in set(labels)}
        if any(groups.count(group) > sizes[group[0]] // 2 for group in groups):
            continue
        others = other_of_its_class(labels, groups)
        assert sorted(others) == list(range(24))
        assert all(labels[i] == labels[j] and groups[i] != groups[j] for i, j in enumerate(others))


def test_the_result_and_the_picture_are_kept_where_asked_and_replaced_only_when_asked(
    generated, real, printed, refused, tmp_path
):
    grid, out = tmp_path / "grid.png", tmp_path / "out"
    argv = ("--generated", generated, "--real", real, "--save-grid", grid, "--out", out)
    shown = printed(*argv)
    assert json.loads((out / "mask-fidelity.json").read_text()) == shown
    assert f"--save-grid {grid}: exists" in refused(*argv)
    grid.unlink()
    assert "has mask-fidelity.json already" in refused(*argv)
    assert printed(*argv, "--overwrite") == shown
