"""What the report has a judge say: classes named as asked and Dice, before and after a run."""

import json

import pytest
import torch

from ldm_us.data.organ import BREAST
from ldm_us.evaluation.judge.file import Training, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, Verdict, fresh_judge
from ldm_us.report import judged


@pytest.fixture
def judge_file(tmp_path):
    path = tmp_path / "judge.safetensors"
    save_judge(fresh_judge(JudgeConfig(size=16), 0), path, Training(1, 1, 0, 0.1, ["toys"], "0" * 64, [], {}))
    return path


def test_the_figures_of_the_judge_stand_above_the_losses_before_and_after_the_run(
    report, runs, judge_file, monkeypatch
):
    def knows_the_asked_class_of_the_result_alone(_, images):
        seen.append(len(images))
        half = torch.zeros_like(images)
        half[..., : images.shape[-1] // 2] = 1
        labels = [BREAST.classes[i * len(BREAST.classes) // len(images)] for i in range(len(images))]
        return Verdict(labels if len(seen) == 2 else ["normal"] * len(images), half)

    seen: list[int] = []
    monkeypatch.setattr(judged, "judge", knows_the_asked_class_of_the_result_alone)
    text = report(runs["unet"], "--steps", 1, "--judge", judge_file).text()
    assert seen == [len(BREAST.classes) * judged.PER_CLASS] * 2
    assert text.index("classes named as asked") < text.index("validation loss")
    assert "33% (20% to 50%) 100% (90% to 100%)" in text
    seen.clear()
    text = report(runs["controlnet"], "--steps", 1, "--judge", judge_file).text()
    assert "Dice with the mask asked for" in text
    assert len(seen) == 3, "without the ControlNet, with it, and the real images"
    assert "classes named" not in report(runs["vae"], "--steps", 1, "--judge", judge_file).text()


def test_what_a_judge_cannot_judge_is_a_note_and_no_judge_is_refused_before_anything_is_sampled(
    report, runs, judge_file, refusal
):
    config = json.loads((runs["controlnet"] / "config.json").read_text())
    (runs["controlnet"] / "config.json").write_text(json.dumps(config | {"data": ["/gone"]}))
    text = report(runs["controlnet"], "--steps", 1, "--judge", judge_file).text()
    assert "The judge's figures are missing: /gone does not exist" in text
    assert "not a judge's" in refusal(runs["unet"], "--judge", runs["unet"] / "model.safetensors")
