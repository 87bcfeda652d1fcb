"""python -m ldm_us.evaluation protocol: a whole small one, what it repeats, what it takes over and what it refuses.

The stages are the real train.py and sample.py, called in this process; one test starts them as the command does.
"""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import sample
import train
from ldm_us.data.organ import BREAST
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import Record
from ldm_us.data.split import split_by_group
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.auc import macro_auc
from ldm_us.evaluation.protocol import command
from ldm_us.evaluation.protocol.arms import check_enough_generated
from ldm_us.evaluation.protocol.command import run_protocol
from ldm_us.evaluation.protocol.configuration import build_configuration, check_configuration, read_configuration
from ldm_us.evaluation.protocol.splits import (
    OTHERS,
    OWN,
    Split,
    check_disjoint,
    check_start,
    check_testable,
    measurable,
    split_images,
)
from ldm_us.evaluation.protocol.stages import check_stages, plan_stages, run_script, wanted_samples
from ldm_us.files.checkpoint import read_metadata, save_model
from ldm_us.files.lineage import Lineage, read_lineage
from ldm_us.training.dataset import data_hash, split_data
from tests.conftest import read_run

CLASSES = ("benign", "malignant", "normal")
TRAIN = {"steps": 1, "batch": 2, "warmup": 0, "sample-every": 0, "validate-every": 0, "lr": 1e-3}
SAMPLE = {"steps": 1, "batch": 8, "fast": True}
CLASSIFIER = {"network": "test_resnet", "size": 32, "epochs": 2, "warmup_epochs": 1, "batch": 8, "validation": 0.2}


def write_images(root, count, seed):
    """Noise with a disc whose grey tells the class; numbered so high that no near-duplicate list knows them."""
    rng = np.random.default_rng(seed)
    for i, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        for nth in range(count):
            mask = np.zeros((24, 24), np.uint8)
            image = rng.integers(60, 200, (24, 24))
            if label != "normal":
                y, x = rng.integers(2, 12, 2)
                mask[y : y + 8, x : x + 10] = 255
                image = np.where(mask > 0, rng.integers(0, 60, (24, 24)) + 90 * i, image)
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{label} ({9000 + 100 * seed + nth}).png")
            Image.fromarray(mask).save(root / label / f"{label} ({9000 + 100 * seed + nth})_mask.png")
    return root


@pytest.fixture(scope="module")
def values(tmp_path_factory, micro):
    """A configuration with everything in it."""
    folder = tmp_path_factory.mktemp("protocol_data")
    data, external = write_images(folder / "data", 12, 1), write_images(folder / "external", 4, 2)
    shutil.rmtree(external / "normal")  # as in dataset B
    shutil.copy(data / "benign" / "benign (9100).png", external / "benign" / "benign (9300).png")
    return {
        "data": [str(data)],
        "held_out": 0.25,
        "external": {"elsewhere": [str(external)]},
        "unet": {"preset": "micro", **TRAIN},
        "controlnet": TRAIN,
        "sample": {"balance": [10, 10, 10], **SAMPLE},
        "small": {"unet": {"preset": "micro", **TRAIN}, "sample": {"balance": [6, 6, 6], **SAMPLE}, "held_out": 0.6},
        "ratios": [0.5, 1],
        "alone": [1],
        "seeds": [0, 1],
        "classifier": CLASSIFIER,
        "resamples": 200,
    }


def configured(values, **changes):
    config = build_configuration(json.loads(json.dumps(values | changes)))
    check_configuration(config)
    return config


class Scripts:
    """train.py and sample.py in this process, and which were called."""

    def __init__(self):
        self.called = []

    def __call__(self, script, arguments):
        self.called.append((script, arguments[0] if script == "train.py" else "sample"))
        assert {"train.py": train.main, "sample.py": sample.main}[script](arguments) == 0


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    """A protocol that was killed after its first classifiers and then went on: folder, and what was called when."""
    out, scripts, config = tmp_path_factory.mktemp("protocol") / "run", Scripts(), configured(values)
    real_unit, count = command.finish_unit, []

    def killed(*arguments):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return real_unit(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "finish_unit", killed)
        with pytest.raises(KeyboardInterrupt):
            run_protocol(config, out, scripts, lambda text: None)
    first = list(scripts.called)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name == "model.safetensors"}
    said = []
    run_protocol(config, out, scripts, said.append)
    return out, config, first, scripts, before, said


def test_a_protocol_runs_each_stage_once_and_goes_on_after_a_kill(finished):
    out, _, first, scripts, before, _ = finished
    assert first == [
        *(("train.py", "unet"), ("train.py", "controlnet"), ("sample.py", "sample")),
        *(("train.py", "unet"), ("sample.py", "sample")),
    ]
    assert scripts.called == first
    assert len(before) == 3 + 3  # models, classifiers
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(out.glob("classifiers/*/seed_*/result.json"))) == 6 * 2


def test_a_finished_protocol_repeats_nothing_and_more_seeds_train_only_those(finished, values, tmp_path):
    out, _, _, scripts, _, _ = finished
    out = shutil.copytree(out, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in out.glob("classifiers/*/*/*")}
    before = len(scripts.called)
    run_protocol(configured(values, seeds=[0, 1, 2]), out, scripts, lambda text: None)
    assert len(scripts.called) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list(out.glob("classifiers/*/seed_2/result.json"))) == 6


def test_a_protocol_with_nothing_left_to_do_says_so_in_a_sentence(finished, values):
    out, config, _, scripts, _, said = finished
    sentence = "all there already: nothing was left to train or to sample"
    assert sentence not in said  # it still had classifiers to train
    again = []
    run_protocol(config, out, scripts, again.append, until="generated")
    assert again[-1] == sentence


def test_the_generator_is_trained_and_sampled_from_training_images_alone(finished, values):
    out, config, *_ = finished
    train_records, held_out = split_data([Path(folder) for folder in config.data], 0.25)
    entries = read_lineage(read_metadata(out / "controlnet" / "model.safetensors")).entries
    assert {entry["data_sha256"] for entry in entries} == {data_hash(train_records)}
    lesions = {label: sum(record.label == label for record in train_records) for label in CLASSES[:2]}
    for label, count in lesions.items():
        assert len(list((out / "masks").glob(f"{label} (*)_mask.png"))) == count
    result = json.loads((out / "classifiers" / "real" / "seed_0" / "result.json").read_text())
    seen = set(result["predictions"]["held-out"]["sha256"])
    assert seen == {hashlib.sha256(record.image.read_bytes()).hexdigest() for record in held_out}


def test_every_arm_takes_as_many_steps_as_the_real_one_and_chooses_on_the_same_real_images(finished):
    out, *_ = finished
    results = [json.loads(path.read_text()) for path in sorted(out.glob("classifiers/*/seed_0/result.json"))]
    by_arm = {result["arm"]: result for result in results}
    assert len({result["steps"] for result in results}) == 1
    real, both = by_arm["real"], by_arm["real + 1x generated"]
    n = sum(real["trained_on"].values()) + sum(real["chosen_on"].values())
    assert real["chosen_on"] == both["chosen_on"]
    assert sum(both["trained_on"].values()) == sum(real["trained_on"].values()) + n
    alone = by_arm["1x generated"]
    assert sum(alone["trained_on"].values()) + sum(alone["chosen_on"].values()) == n
    assert set(by_arm["generated from 40%"]["predictions"]) == {OWN, OTHERS}


def test_the_tables_hold_the_aucs_of_the_stored_predictions(finished):
    out, *_ = finished
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    row = next(r for r in rows if (r["test"], r["arm"], r["seed"]) == ("elsewhere", "1x generated", "1"))
    test = json.loads((out / "classifiers/generated_1/seed_1/result.json").read_text())["predictions"]["elsewhere"]
    labels = np.array([CLASSES.index(label) for label in test["label"]])
    assert float(row["auc"]) == pytest.approx(macro_auc(labels, np.array(test["probabilities"])), abs=1e-6)
    assert row["test_classes"] == "benign malignant"
    assert len(rows) == (2 * 4 + 2 + 1) * (1 + 2)


def test_an_external_copy_of_a_training_image_is_left_out_and_said(finished):
    out, _, _, _, _, said = finished
    assert any("elsewhere: 1 of 9 images are left out" in text for text in said)
    result = json.loads((out / "classifiers" / "real" / "seed_0" / "result.json").read_text())
    assert len(result["predictions"]["elsewhere"]["label"]) == 8


def test_the_report_is_one_file_with_tables_plots_hashes_and_cautions(finished):
    out, *_ = finished
    page = (out / "report.html").read_text(encoding="ascii")
    assert page.count("data:image/png;base64,") == 4
    assert 'src="http' not in page
    assert "as in the paper&#39;s 94 percent" in page
    assert "random initial weights" in page
    result = json.loads((out / "classifiers" / "real" / "seed_0" / "result.json").read_text())
    assert result["model_sha256"][:16] in page
    assert (out / "results.md").read_text().count("\n|---|") == 4
    for name in ("auc_by_ratio.png", "roc.png"):
        with Image.open(out / name) as plot:
            assert plot.width > 1000


def test_a_classifier_file_names_its_network_and_classes(finished):
    out, *_ = finished
    with safe_open(out / "classifiers/real/seed_0/model.safetensors", framework="pt") as file:
        assert (file.metadata()["timm"], file.metadata()["classes"]) == ("test_resnet", json.dumps(CLASSES))


def test_a_changed_configuration_is_refused_naming_what_differs(finished, values):
    out, *_ = finished
    changed = configured(values, held_out=0.3, classifier=CLASSIFIER | {"epochs": 3})
    with pytest.raises(ValueError, match=r"classifier.epochs was 2, is 3; .*held_out was 0.25, is 0.3"):
        run_protocol(changed, out, Scripts(), lambda text: None)


def test_a_result_that_was_changed_after_its_stage_is_refused(finished, values, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "run")
    with open(out / "unet" / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="missing, or another file"):
        run_protocol(configured(values), out, Scripts(), lambda text: None)


def test_a_finished_run_of_train_py_is_taken_over_and_a_different_one_refused(values, tmp_path):
    config, out = configured(values), tmp_path / "run"
    stage = plan_stages(config, out)[0]
    train.main(list(stage.arguments))
    before, log = stage.product.read_bytes(), read_run(out / "unet").log
    run_protocol(config, out, Scripts(), lambda text: None, until="unet")
    assert stage.product.read_bytes() == before
    assert read_run(out / "unet").log == log
    other = configured(values, unet=values["unet"] | {"lr": 2e-3})
    shutil.rmtree(out / "cache")
    (out / "stages.json").unlink()
    with pytest.raises(ValueError, match=r"holds another run \(lr was 0.001, is 0.002\)"):
        run_protocol(other, out, Scripts(), lambda text: None, until="unet")


def test_a_model_that_knows_the_held_out_images_is_no_start_and_one_of_other_images_of_the_data_is(values, finished):
    """The small generator's images are all among those that the large one is trained on, not the other way round."""
    small, large = (finished[0] / name / "model.safetensors" for name in ("unet_small", "unet"))
    config = configured(values)
    split, folders = split_images(config), [Path(folder) for folder in config.data]
    shares = {share: data_hash(split_data(folders, share)[0]) for share in (0.25, 0.6)}
    with pytest.raises(ValueError, match='was trained on images of "small generator\'s unseen images"'):
        check_start(large, config, split, shares[0.6])
    for weights, share in ((small, 0.25), (small, 0.6), (large, 0.25)):
        check_start(weights, config, split, shares[share])


def start_of_folder(records, folder, path, micro):
    """A model file that says it was trained on these images in a folder of this name."""
    entry = {"stage": "unet", "data": [folder], "held_out": 0.0, "data_sha256": data_hash(records)}
    save_model(LatentDiffusion(micro), path, Lineage((entry,)).metadata())
    return path


def test_a_model_that_knows_images_to_test_on_is_no_start_whatever_its_folder_was_called(values, micro, tmp_path):
    config = configured(values)
    split = split_images(config)
    data, external = (read_datasets([Path(f)]) for f in (config.data[0], config.external["elsewhere"][0]))
    training, held_out = split_data([Path(f) for f in config.data], 0.25)
    known = data_hash(training)
    for records, folder, said in (
        (data, "renamed", "'data'"),
        (held_out, "renamed", "'held-out'"),
        (external, "renamed", "'elsewhere'"),
        (split.tests["elsewhere"], "renamed", "'elsewhere'"),
        (external[1:], "external", "'elsewhere'"),
        (data[1:], "data", "another split"),
    ):
        with pytest.raises(ValueError, match=said):
            check_start(start_of_folder(records, folder, tmp_path / "m.safetensors", micro), config, split, known)
    for records, folder in ((training, "data"), (external[:3], "else")):
        check_start(start_of_folder(records, folder, tmp_path / "m.safetensors", micro), config, split, known)


def records_of(*pairs):
    return [Record(path, (), label, "p", group) for path, label, group in pairs]


def test_a_split_with_a_family_or_an_image_on_both_sides_is_refused(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"image" if name != "b" else b"other")
    a, b, c = (tmp_path / name for name in ("a", "b", "c"))
    train_side = records_of((a, "benign", "family 1"))
    with pytest.raises(ValueError, match="1 families are trained on and tested on"):
        check_disjoint(train_side, records_of((b, "benign", "family 1")), "held-out")
    with pytest.raises(ValueError, match="byte for byte"):
        check_disjoint(train_side, records_of((c, "benign", "family 2")), "held-out")
    check_disjoint(train_side, records_of((b, "benign", "family 2")), "held-out")


def test_families_of_mixed_labels_are_not_tested_on(tmp_path):
    mixed = records_of((tmp_path / "a", "benign", "1"), (tmp_path / "b", "malignant", "1"))
    pure = records_of((tmp_path / "c", "benign", "2"), (tmp_path / "d", "unknown", "3"))
    assert measurable([*mixed, *pure], CLASSES) == pure[:1]


def test_too_few_images_and_missing_classes_are_refused(values, tmp_path):
    one_each = records_of(*((tmp_path / label, label, label) for label in CLASSES))
    with pytest.raises(ValueError, match="too few images"):
        check_testable("held-out", one_each, CLASSES)
    with pytest.raises(ValueError, match=r"needs 54 generated images, 2 for each of 27 real ones, but .* makes 30"):
        run_protocol(configured(values, ratios=[2]), tmp_path / "run", Scripts(), lambda text: None)
    data = shutil.copytree(values["data"][0], tmp_path / "two")
    shutil.rmtree(data / "normal")
    with pytest.raises(ValueError, match=r"no image to train on is normal, they are benign, malignant\."):
        split_images(configured(values, data=[str(data)], external={}))
    split = split_images(configured(values, data=[str(data)], external={}, classes=["benign", "malignant"]))
    assert {record.label for record in split.train} == {"benign", "malignant"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"helt_out": 0.2}, "helt_out is not a field"),
        ({"held_out": "0.2"}, "held_out is '0.2'"),
        ({"classifier": {"epoch": 3}}, "classifier.epoch is not a field"),
        ({"unet": {"flip": False}}, "unet.flip is false"),
        ({"seeds": [0, 0]}, "one of them twice"),
        ({"ratios": [-1]}, "ratios is"),
        ({"classes": ["benign"]}, "classes is"),
        ({"data": []}, "data is"),
        ({"seeds": [[0]]}, r"seeds is \[\[0\]\]"),
        ({"classes": [["benign"]]}, "classes is"),
        ({"ratios": [{}]}, "ratios is"),
        ({"classifier": {"crop": ["a", "b"]}}, r"classifier.crop is \['a', 'b'\]"),
        ({"classifier": {"crop": 0.8}}, "classifier.crop is 0.8"),
        ({"classifier": {"weights": 5}}, "classifier.weights is 5"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_by_field(values, tmp_path, changes, said):
    (tmp_path / "c.json").write_text(json.dumps(values | changes))
    with pytest.raises(ValueError, match=said):
        read_configuration(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unet": {"preset": "micro", "steps": 1, "held-out": 0.1}}, "set by the protocol"),
        ({"unet": {"preset": "micro", "stepps": 1}}, "stage unet: .*required|unrecognized"),
        ({"controlnet": TRAIN | {"ema": 2}}, "stage controlnet: --ema"),
        ({"sample": SAMPLE}, 'stage generated: no "balance"'),
        ({"sample": SAMPLE | {"balance": [1, 1, 1], "eta": 2}}, "stage generated: --eta"),
    ],
)
def test_options_of_later_stages_are_refused_before_the_first(values, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        check_stages(plan_stages(configured(values, **changes), tmp_path))


def test_the_scripts_are_started_as_a_user_would_and_their_refusal_ends_the_protocol(values, tmp_path, capfd):
    stage = plan_stages(configured(values, unet={"preset": "tiny", **TRAIN}), tmp_path)[0]
    run_script("train.py", [*stage.arguments, "--dry-run"])
    assert "27 training images, 9 held out" in capfd.readouterr().out
    with pytest.raises(ValueError, match=r"train\.py ended with exit code 2"):
        run_script("train.py", ["unet", "--nonsense"])


@pytest.mark.parametrize("name", ["protocol_us128", "protocol_sd15"])
def test_the_example_configurations_sample_enough_for_the_780_images_of_busi(name):
    values = json.loads((Path(__file__).parents[3] / "docs" / f"{name}.json").read_text())
    config = build_configuration(values)
    counts = {"benign": 437, "malignant": 210, "normal": 133}
    records = records_of(*((Path(f"{c} ({i})"), c, f"{c} {i}") for c, n in counts.items() for i in range(n)))
    known, held_out = split_by_group(records, config.held_out, 0)
    assert len(known) + len(held_out) == 780
    stage = next(stage for stage in plan_stages(config, Path("out")) if stage.name == "generated")
    wanted = wanted_samples(stage, BREAST.classes)
    check_enough_generated(config, Split(known, [], {}, {}, BREAST.classes, []), sum(wanted))
    assert [n / sum(wanted) for n in wanted] == pytest.approx([n / 780 for n in counts.values()], abs=0.001)


@pytest.mark.parametrize("name", ["protocol_us128", "protocol_sd15", "protocol_busi", "protocol_imagenet"])
def test_the_example_configurations_hold(name):
    path = Path(__file__).parents[3] / "docs" / f"{name}.json"
    config = build_configuration(json.loads(path.read_text()))
    check_configuration(replace(config, device="cpu", classifier=replace(config.classifier, weights=None)))
    stages = [stage.name for stage in plan_stages(config, Path("out"))]
    masks = ["controlnet"] if name in ("protocol_us128", "protocol_sd15") else []
    assert stages[: len(masks) + 2] == ["unet", *masks, "generated"]
