"""Masks of two structures the whole way: a ControlNet learns and follows them, and what it draws is read again."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import train
from ldm_us.config import PICTURE
from ldm_us.data.audit.findings import audit_folder
from ldm_us.data.framing import Framing, fit_by
from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.masks.files import read_masks
from ldm_us.data.opening import open_image
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import followed, load_mask, of_structure, union_of_masks
from ldm_us.data.words import words_of
from ldm_us.evaluation.__main__ import main as evaluation
from ldm_us.evaluation.judge.file import Training, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, fresh_judge
from ldm_us.evaluation.protocol.stages import write_training_masks
from ldm_us.files.checkpoint import load_model, read_metadata, save_model
from ldm_us.report import figures
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.info import describe_model
from ldm_us.synthesis.subjects import masked_subjects
from weights_convert.__main__ import main as weights_convert

NAMES = ("lobe", "nodule")
DESCRIPTION = {
    "template": "Ultrasound image of a {label} thyroid nodule",
    "classes": ["benign", "suspicious"],
    "without": [],
    "structures": {"lobe": [1, 2], "nodule": 2},
}


@pytest.fixture(scope="module")
def thyroid(tmp_path_factory):
    """Twelve images in folders of two classes, with masks of labels."""
    root, generator = tmp_path_factory.mktemp("thyroid"), np.random.default_rng(0)
    (root / "dataset.json").write_text(json.dumps(DESCRIPTION))
    for label in DESCRIPTION["classes"]:
        (root / label).mkdir()
        for i in range(1, 7):
            labels = np.zeros((24, 32), np.uint8)
            labels[4:20, 2 + i : 28] = 1
            labels[8 : 10 + i, 12:20] = 2
            Image.fromarray(generator.integers(0, 256, labels.shape, dtype=np.uint8)).save(
                root / label / f"{label} ({i}).png"
            )
            Image.fromarray(labels).save(root / label / f"{label} ({i})_mask.png")
    return root


@pytest.fixture(scope="module")
def trained(arguments, thyroid, tmp_path_factory):
    """The model file of a ControlNet of two steps, whose zero convolutions are as if it were of many."""
    root = tmp_path_factory.mktemp("run")
    flags = ("--validate-every", 1, "--held-out", 0.4, "--sample-every", 2, "--aspect", "bucket", "--size", 32)
    for stage, weights in (("unet", None), ("controlnet", root / "unet" / "model.safetensors")):
        argv = arguments(stage, root / stage, *flags, weights=weights, data=thyroid)
        assert run_command(lambda argv=argv: train.main(argv)) == 0
    model = load_model(root / "controlnet" / "model.safetensors")
    with torch.no_grad():
        for conv in [*model.controlnet.zero_convs, model.controlnet.hint_network.conv_out]:
            conv.weight.copy_(0.3 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0)))
    save_model(model, root / "model.safetensors", read_metadata(root / "controlnet" / "model.safetensors"))
    return root / "model.safetensors"


def call(weights, out, *options):
    words = ["--weights", weights, "--out", out, "--steps", 2, "--n", 1, "--device", "cpu", *options]
    return run_command(partial(sample.main, list(map(str, words))))


def test_a_new_controlnet_has_a_channel_for_each_structure_and_its_run_measures_the_gap(trained):
    model = load_model(trained)
    assert model.config.control.hint == NAMES
    assert model.controlnet.hint_network.convs[0].weight.shape[1] == 2
    assert "labels of --mask: lobe 1, nodule 2" in describe_model(trained).splitlines()
    lines = (trained.parent / "controlnet" / "log.jsonl").read_text().splitlines()
    assert any("control_gap" in line for line in lines)
    assert next((trained.parent / "controlnet" / "samples").iterdir()).suffix == ".png"


def test_samples_follow_both_structures_verify_and_are_read_as_a_dataset_of_the_same_masks(trained, thyroid, tmp_path):
    out = tmp_path / "out"
    assert call(trained, out, "--mask", thyroid, "--layout", "busi") == 0
    assert run_command(partial(sample.main, ["--weights", str(trained), "--verify", str(out)])) == 0
    asked, drawn = (sorted(read_datasets([root])) for root in (thyroid, out))
    for one, other in zip(asked, drawn, strict=True):
        assert other.structures == NAMES
        size = open_image(other.image).size[::-1]
        frame = fit_by("bucket", size, *open_image(one.image).size)  # as samples of a model of buckets have it
        hint = load_mask(followed(other, NAMES).masks, size)
        assert torch.equal(load_mask(followed(one, NAMES).masks, frame), hint)
        assert set(hint.unique().tolist()) == {0.0, 1.0, 3.0}, "the nodule lies in the lobe"


def test_a_nodule_that_moves_changes_the_sample_and_a_mask_without_a_description_has_the_labels_in_their_order(
    trained, tmp_path
):
    pictures = []
    for name, columns in (("one", slice(4, 8)), ("other", slice(20, 24))):
        labels = np.zeros((24, 32), np.uint8)
        labels[4:20, 2:28] = 1
        labels[8:12, columns] = 3  # where both are
        Image.fromarray(labels).save(tmp_path / f"{name}.png")
        out = tmp_path / name
        assert call(trained, out, "--mask", tmp_path / f"{name}.png", "--class", "benign") == 0
        pictures.append(open_image(next(out.glob("0*.png"))))
        (line,) = (out / "manifest.jsonl").read_text().splitlines()
        assert json.loads(line)["mask"] == f"{name}.png"
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_what_a_controlnet_of_structures_cannot_follow_is_one_sentence(trained, thyroid, arguments, tmp_path, capsys):
    labels = np.full((24, 32), 4, np.uint8)
    Image.fromarray(labels).save(tmp_path / "mask.png")
    assert call(trained, tmp_path / "out", "--mask", tmp_path / "mask.png", "--class", "benign") == 2
    assert "mask.png: 4 is there, and the labels with a name are 1, 2, 3." in capsys.readouterr().err
    (tmp_path / "plain").mkdir()
    controls = ("--also-control", trained, tmp_path / "mask.png", 1)
    assert call(trained, tmp_path / "out", "--class", "benign", *controls) == 2
    assert "it has a channel for each of lobe, nodule" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    for path in thyroid.iterdir():
        if path.is_dir():
            (other / path.name).symlink_to(path)
    (other / "dataset.json").write_text(json.dumps(DESCRIPTION | {"structures": {"lobe": [1, 2], "cyst": 2}}))
    argv = arguments("controlnet", tmp_path / "run", weights=trained, data=other)
    assert run_command(lambda: train.main(argv)) == 2
    assert "its ControlNet has channels for lobe, nodule, and --data shows lobe, cyst." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_controlnet_of_one_mask_goes_on_with_structures_joined_and_says_so(
    trained, thyroid, arguments, tmp_path, capsys
):
    model = load_model(trained)
    model.add_controlnet(("mask",))
    save_model(model, tmp_path / "plain.safetensors", {"lineage": read_metadata(trained)["lineage"]})
    argv = arguments("controlnet", tmp_path / "run", weights=tmp_path / "plain.safetensors", data=thyroid)
    assert run_command(lambda: train.main(argv)) == 0
    assert "follows one mask: lobe, nodule are joined." in capsys.readouterr().err


@pytest.mark.parametrize("format", ["controlnet", "diffusers"])
def test_an_exported_controlnet_of_structures_comes_back(trained, tmp_path, format):
    exported = tmp_path / ("out.safetensors" if format == "controlnet" else "folder")
    words = ["export", str(trained), "--format", format, "--out", str(exported)]
    assert run_command(lambda: weights_convert(words)) == 0
    if format == "diffusers":
        assert json.loads((exported / "controlnet" / "config.json").read_text())["conditioning_channels"] == 2
    source = [str(exported)] if format == "diffusers" else [str(trained), "--controlnet", str(exported)]
    assert run_command(lambda: weights_convert(["import", *source, "--out", str(tmp_path / "back.safetensors")])) == 0
    before, after = load_model(trained), load_model(tmp_path / "back.safetensors")
    assert after.config.control.hint == NAMES
    for name, value in before.controlnet.state_dict().items():
        torch.testing.assert_close(after.controlnet.state_dict()[name], value, atol=2e-3, rtol=2e-3)


def test_fidelity_is_measured_of_one_structure_by_its_name_and_a_judge_finds_the_one_it_learned(
    trained, thyroid, tmp_path, capsys
):
    words = ["masks", "--weights", str(trained), "--data", str(thyroid), "--steps", "2", "--device", "cpu"]
    dice = []
    for structure in ([], ["--structure", "nodule"]):
        assert run_command(lambda more=structure: evaluation([*words, *more])) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed.get("structure") == (structure[1] if structure else None)
        dice.append(printed["dice"]["real"])
    assert dice[0] != dice[1], "other pixels are compared"
    judge = fresh_judge(JudgeConfig(size=16, widths=(8, 8)), seed=0, classes=list(DESCRIPTION["classes"]))
    about = Training(1, 1, 0, 0.5, ["x"], "0", ["0"], {"a": 0.5}, structure="lobe")
    save_judge(judge, tmp_path / "judge.safetensors", about)
    assert run_command(lambda: evaluation([*words, "--structure", "cyst"])) == 2
    assert "--structure cyst: the masks show lobe, nodule." in capsys.readouterr().err
    options = ["--judge", str(tmp_path / "judge.safetensors"), "--structure", "nodule"]
    assert run_command(lambda: evaluation([*words, *options])) == 2
    assert "judge.safetensors finds lobe. Train one with" in capsys.readouterr().err


def test_an_image_is_inverted_with_the_structures_it_has_and_a_region_may_be_labels_too(trained, thyroid, tmp_path):
    label = next(iter(DESCRIPTION["classes"]))
    image, mask, other = (thyroid / label / f"{label} ({name}.png" for name in ("1)", "1)_mask", "2)_mask"))
    edits = (["--invert", "--source-mask", mask, "--mask", other], ["--inpaint", mask, "--sampler", "ddim"])
    for i, edit in enumerate(edits):
        out, files = tmp_path / str(i), ["--init", image, *edit[: 3 if i == 0 else 2]]
        assert call(trained, out, "--class", label, "--init", image, *edit) == 0
        given = [word for word in files if word != "--invert"]
        words = ["--weights", trained, "--verify", next(out.glob("0*.png")), *given]
        assert run_command(partial(sample.main, list(map(str, words)))) == 0


def test_the_report_draws_by_the_hint_that_training_saw(trained, thyroid):
    run = trained.parent / "controlnet"
    config = json.loads((run / "config.json").read_text())
    examples, notes = figures.read_examples(config, [thyroid], Framing(32, "bucket", 4), NAMES)
    assert notes == []
    assert {value for one in examples for value in one.mask.unique().tolist()} == {0, 1, 3}
    drawn = figures.drawn_examples(16, words_of(trained), NAMES)
    assert {value for one in drawn for value in one.mask.unique().tolist()} == {0, 3}
    assert figures.drawn_examples(16, words_of(trained), PICTURE)[0].mask.max() == 255


def test_a_protocol_gives_a_controlnet_of_structures_masks_that_it_follows(trained, thyroid, tmp_path):
    records = read_datasets([thyroid])
    assert write_training_masks(records, trained, tmp_path / "masks") == len(records)
    written = load_mask(followed(records[0], NAMES).masks, (24, 32))
    subject = masked_subjects(tmp_path / "masks", DESCRIPTION["classes"], NAMES)[0]
    assert torch.equal(load_mask(subject.masks, (24, 32)), written)


def test_pictures_to_follow_are_no_masks_wherever_masks_are_measured_or_judged(tmp_path):
    for i in range(1, 3):
        Image.new("L", (32, 24), 200).save(tmp_path / f"{i}.png")
        Image.new("L", (32, 24), 90).save(tmp_path / f"{i}_mask.png")
    lines = [{"file_name": f"{i}.png", "mask": f"{i}_mask.png", "text": "a breast"} for i in (1, 2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "dataset.json").write_text('{"hint": "picture"}')
    records = read_datasets([tmp_path])
    with pytest.raises(ValueError, match="pictures to follow: nothing is measured against them"):
        of_structure(records, None)
    with pytest.raises(ValueError, match="what stands for masks there are pictures"):
        read_masks(tmp_path, 16)
    union = union_of_masks(records[0].masks)
    assert not looks_inverted(union)
    assert looks_inverted(Image.new("L", (32, 24), 255))
    assert not any(audit_folder(tmp_path).found.values())


def test_a_mask_of_black_and_white_is_no_first_label(trained, tmp_path, capsys):
    Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / "mask.png")
    assert call(trained, tmp_path / "out", "--mask", tmp_path / "mask.png", "--class", "benign") == 2
    assert "mask.png: 255 is there, and the labels with a name are 1, 2, 3." in capsys.readouterr().err
