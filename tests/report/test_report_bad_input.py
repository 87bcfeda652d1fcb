"""The report and bad input: unfinished runs are shown as they are, and what is no run is refused in one sentence."""

import json

import pytest
from PIL import Image

from ldm_us.report.__main__ import main
from ldm_us.runtime.entry import run_command

STAGES = ("vae", "unet", "controlnet")


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "other weights"])
def test_a_run_without_a_whole_result_is_shown_as_not_finished(report, runs, kind):
    model = runs["controlnet"] / "model.safetensors"
    if kind == "missing":
        model.unlink()
    elif kind == "empty":
        model.write_bytes(b"")
    elif kind == "cut":
        model.write_bytes(model.read_bytes()[:-100])
    else:
        model.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    text = report(runs["controlnet"], "--steps", 1).text()
    assert "not finished" in text
    assert "What the result makes" not in text
    assert "Zero convolutions" in text
    assert "random weights, then vae, 2 steps, then unet, 2 steps" in text, "from the file it started from"


def test_a_result_older_than_the_log_is_named(report, runs):
    with open(runs["unet"] / "log.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1.0}\n')
    text = report(runs["unet"], "--no-samples").text()
    assert "not finished: the log goes to step 7, and model.safetensors is that of step 2." in text


@pytest.mark.parametrize("stage", STAGES)
def test_without_the_data_the_report_says_so_and_leaves_the_originals_out(report, runs, stage):
    config = json.loads((runs[stage] / "config.json").read_text())
    (runs[stage] / "config.json").write_text(json.dumps(config | {"data": ["/gone"]}))
    page = report(runs[stage], "--steps", 1)
    assert "/gone does not exist" in page.text()
    assert not [attributes for attributes in page.of("img") if "original" in attributes["alt"]]
    assert ("Figure 4" in page.text()) == (stage == "controlnet"), "with drawn masks"


def test_data_that_moved_are_found_with_data(report, runs, own_busi, refusal, tmp_path):
    config = json.loads((runs["controlnet"] / "config.json").read_text())
    (runs["controlnet"] / "config.json").write_text(json.dumps(config | {"data": ["/gone"]}))
    page = report(runs["controlnet"], "--steps", 1, "--data", own_busi)
    assert "cannot be read" not in page.text()
    assert "have changed" not in page.text()
    assert [attributes for attributes in page.of("img") if attributes["alt"].endswith("original")]
    Image.new("L", (32, 32), 9).save(own_busi / "normal" / "normal (9001).png")
    assert "have changed" in report(runs["controlnet"], "--steps", 1, "--data", own_busi).text()
    assert "nowhere" in refusal(runs["controlnet"], "--data", tmp_path / "nowhere")


def test_a_run_that_held_nothing_out_shows_training_images_and_says_so(report, run, tmp_path):
    folder = run("vae", tmp_path / "all", "--held-out", 0).out
    text = report(folder, "--steps", 1).text()
    assert "held no images out" in text
    assert "Held-out images and their reconstructions" in text


def test_a_log_whose_last_line_is_being_written_is_read_up_to_it(report, runs):
    with open(runs["unet"] / "log.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    assert "step 2" in report(runs["unet"], "--no-samples").text()


def test_values_that_are_no_numbers_are_shown_as_such(report, runs):
    (runs["unet"] / "log.jsonl").write_text('{"step": 0, "val_loss": 1.5}\n{"step": 2, "val_loss": NaN, "loss": NaN}\n')
    text = report(runs["unet"], "--no-samples").text()
    assert "1.5 step 0 nan step 2" in text
    assert "no finite value in the log" in text


@pytest.mark.parametrize(
    ("log", "named"),
    [
        (None, "log.jsonl: no such file"),
        (b"", "no whole line"),
        (b"\n\n", "no whole line"),
        (b'{"step": 1, "lo', "no whole line"),
        (b'{"step": 1}\nnonsense\n{"step": 2}\n', "line 2 is damaged"),
        (b'{"loss": 1}\n', "line 1 is damaged"),
        (b'{"step": 1, "loss": "low"}\n', "line 1 is damaged"),
        (b"[1]\n", "line 1 is damaged"),
        (b'{"step": -1}\n', "line 1 is damaged"),
        (b'{"step": NaN}\n', "line 1 is damaged"),
        (b"\xff\xfe\0\n", "line 1 is damaged"),
    ],
)
def test_a_log_that_is_missing_empty_or_damaged_is_named(refusal, runs, log, named):
    path = runs["unet"] / "log.jsonl"
    path.unlink() if log is None else path.write_bytes(log)
    line = refusal(runs["unet"])
    assert named in line
    assert str(path) in line
    assert not (runs["unet"] / "report.html").exists()


def test_a_folder_that_is_no_run_is_named(refusal, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    assert "nowhere: no such folder" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(tmp_path / "file")
    assert "no config.json" in refusal(tmp_path / "empty")
    for config in ("{", "[]", '{"data_sha256": ""}', '{"data_sha256": "", "stage": "other"}'):
        (runs["vae"] / "config.json").write_text(config)
        assert "no config.json" in refusal(runs["unet"], runs["vae"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--steps", 0), "--steps 0"),
        (("--steps", 1001), "1001"),
        (("--seed", -1), "--seed -1"),
        (("--seed", 2**63 - 2), "--seed"),
        (("--device", "gpu"), "--device gpu"),
        (("--out", "."), "is a folder"),
    ],
)
def test_settings_that_make_no_sense_are_named(refusal, runs, flags, named):
    assert named in refusal(runs["unet"], *flags)
    assert not (runs["unet"] / "report.html").exists()


def test_a_full_disk_leaves_no_half_report(refusal, runs, full_disk, monkeypatch):
    full_disk("report.html", 1000, monkeypatch)
    assert "No space left on device" in refusal(runs["unet"], "--no-samples")
    assert not list(runs["unet"].glob("*report*"))


def test_a_report_takes_no_place_unasked_but_that_of_the_last_report_in_the_run(report, runs, refusal, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    said = refusal(runs["unet"], "--no-samples", "--out", tmp_path / "mine.html")
    assert said == f"error: --out {tmp_path / 'mine.html'}: exists. Choose another name, or add --overwrite."
    assert (tmp_path / "mine.html").read_text() == "mine"
    (runs["unet"] / "report.html").write_text("of yesterday")
    assert run_command(lambda: main([str(runs["unet"]), "--no-samples"])) == 0
    assert "of yesterday" not in (runs["unet"] / "report.html").read_text()
