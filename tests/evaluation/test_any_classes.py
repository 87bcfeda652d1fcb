"""Evaluation of sets with other classes than the breast's, or with none: what can be judged, and what cannot."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm_us.data.organ import BREAST, UNKNOWN, Organ
from ldm_us.data.records import Record
from ldm_us.evaluation.judge.file import Training, check_judged, load_judge, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, fresh_judge, judge
from ldm_us.evaluation.protocol.configuration import ProtocolConfig
from ldm_us.evaluation.protocol.splits import check_classes
from ldm_us.evaluation.reader.deck import choices
from ldm_us.evaluation.sets.image_sets import one_per_group
from ldm_us.report.figures import choose

HEART = Organ("a heart, {label}", ("2CH", "4CH", "healthy"), ("healthy",))


def records(*labels, organ=HEART):
    return [Record(Path(f"{i}.png"), (), label, label, f"{i}", organ) for i, label in enumerate(labels)]


def test_a_judge_names_the_classes_that_it_was_trained_on_and_its_file_keeps_them(tmp_path):
    network = fresh_judge(JudgeConfig(size=16), 0, HEART.classes[:2]).eval()
    save_judge(network, tmp_path / "judge.safetensors", Training(1, 1, 0, 0.1, [], "", [], {}))
    kept, _ = load_judge(tmp_path / "judge.safetensors")
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert set(judge(kept, images).labels) <= {"2CH", "4CH"}
    assert judge(kept, images).labels == judge(network, images).labels


def test_a_judge_of_one_organ_does_not_judge_another():
    network = fresh_judge(JudgeConfig(size=16), 0)
    check_judged(network, ["benign", UNKNOWN], "--generated")
    with pytest.raises(ValueError, match=r"--generated: images of the class 2CH, and the judge learned benign,.*Train"):
        check_judged(network, ["2CH", "benign"], "--generated")


def test_a_protocol_tells_any_classes_of_the_data_apart_and_finds_a_misspelled_one():
    config = ProtocolConfig(("data",), {}, {}, classes=("2CH", "4CH"))
    assert check_classes(config, records("4CH", "2CH", "healthy", UNKNOWN)) == ("2CH", "4CH", "healthy")
    with pytest.raises(ValueError, match=r"is helthy, they are 2CH, 4CH, healthy\. Write 'healthy'"):
        check_classes(replace(config, classes=("2CH", "helthy")), records("4CH", "2CH", "healthy"))
    with pytest.raises(ValueError, match="they are of no class"):
        check_classes(config, records(UNKNOWN))
    two = replace(config, classes=BREAST.classes[:2])
    assert check_classes(two, records(*two.classes, organ=BREAST)) == BREAST.classes, "the order of --balance"


def test_patients_of_several_views_are_one_image_each_where_every_patient_has_several():
    views = [replace(one, group=f"patient {i // 2}") for i, one in enumerate(records(*["2CH", "4CH"] * 3))]
    kept, conflicts = one_per_group(views)
    assert ([record.label for record in kept], conflicts) == (["2CH", "4CH", "2CH"], 0)
    alone = [replace(one, group="patient 9") for one in records("2CH")]
    assert one_per_group([*views, *alone]) == (alone, 3)


def test_readers_choose_among_the_classes_of_the_study():
    assert choices([records("4CH"), records("2CH", UNKNOWN)]) == ("2CH", "4CH")
    assert choices([records("malignant"), records("benign")]) == BREAST.classes


def test_a_report_shows_held_out_images_of_every_class_and_those_without_one():
    shown = choose(records(*["2CH"] * 3, *["healthy"] * 3, *[UNKNOWN] * 3))
    assert [record.label for record in shown] == ["2CH", "2CH", "healthy", UNKNOWN, UNKNOWN]
