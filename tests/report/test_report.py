"""The report: one file that holds everything it shows, and is true to the log and to the result."""

import base64
import io
import json
import shutil

import torch
from PIL import Image

from ldm_us.data.organ import BREAST
from ldm_us.data.words import Words
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import to_picture
from ldm_us.report import figures
from ldm_us.report.__main__ import main
from ldm_us.report.run_folder import read_run
from ldm_us.runtime.entry import run_command


def test_a_report_of_three_stages_holds_everything_it_shows(report, runs):
    page = report(*runs.values(), "--steps", 2)
    assert not page.of("script") + page.of("link") + page.of("iframe")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    styles = "".join(data for tag, data in page.texts if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"][1:] for attributes in page.of("a")} <= anchors

    images = page.of("img")
    assert len(images) > 40
    for attributes in images:
        assert attributes["alt"].strip()
        picture = Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2], validate=True)))
        picture.load()
        assert (str(picture.width), str(picture.height)) == (attributes["width"], attributes["height"])


def test_a_report_shows_the_figures_of_each_stage_and_says_that_samples_are_synthetic(report, runs):
    expected = {
        "vae": ("Held-out images and their reconstructions",),
        "unet": ("like the paper's Figure 3", "One sample in the making", "seed 7"),
        "controlnet": ("like the paper's Figure 4", "One sample in the making", "seed 7"),
    }
    for stage, titles in expected.items():
        text = report(runs[stage], "--steps", 2, "--seed", 7).text()
        assert all(title in text for title in titles), stage
        assert "not for diagnosis" in text


def test_a_report_tells_what_a_run_started_from_and_what_it_taught(report, runs, chain, busi):
    text = report(runs["controlnet"], "--no-samples").text()
    assert "random weights, then vae, 2 steps, then unet, 2 steps" in text
    for stage in ("vae", "unet"):
        assert sha256_file(chain[stage].path)[:12] in text
    trained = sum(p.numel() for p in load_model(chain["controlnet"].path).controlnet.parameters())
    assert f"controlnet: {trained:,} of" in text
    assert f"2 steps, 4 images seen, of {busi.name}" in text
    assert "caption_dropout" in text, "the configuration"


def test_the_summary_holds_the_first_and_the_last_value(report, runs):
    page = report(*runs.values(), "--no-samples")
    text = page.text()
    for before, after in (("12.5", "11.25"), ("0.987", "0.8893"), ("0.456", "0.4114"), ("0", "0.001")):
        assert f"{before} step 0 {after} step 2" in text
    assert "step 2, -1.2 dB" in text
    assert "step 2, -10%" in text


def test_a_run_without_validation_is_summed_up_by_its_training_loss(report, runs):
    (runs["unet"] / "log.jsonl").write_text('{"step": 1, "loss": 0.75}\n{"step": 2, "loss": 0.25}\n')
    text = report(runs["unet"], "--no-samples").text()
    assert "0.75 step 1 0.25 step 2, -67%" in text
    (runs["unet"] / "log.jsonl").write_text('{"step": 1, "loss": 0.75}\n')
    assert "0.75 step 1 not yet" in report(runs["unet"], "--no-samples").text()
    (runs["unet"] / "log.jsonl").write_text('{"step": 1, "lr": 0.75}\n')
    assert "none none" in report(runs["unet"], "--no-samples").text()


def test_the_pictures_of_the_training_come_first_and_last_side_by_side_then_some_between(report, runs):
    folder = runs["unet"] / "samples"
    for path in folder.iterdir():
        path.unlink()
    for step in range(0, 1001, 100):
        Image.new("L", (8, 8), step // 5).save(folder / f"step_{step:08d}.png")
    (folder / "step_00000100.png").write_bytes(b"damaged")
    page = report(runs["unet"], "--no-samples")
    steps = [int(attributes["alt"].rpartition(" ")[2]) for attributes in page.of("img")]
    assert steps == [0, 1000, 200, 400, 600, 800]
    assert "step_00000100.png is not an image" in page.text()


def test_titles_paths_and_settings_are_escaped(report, runs, tmp_path):
    name = "<script>alert(1)</script>&\"'\u00e9"
    folder = tmp_path / name.replace("/", "_")
    shutil.copytree(runs["unet"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"data": ["/gone/<i>x</i>"], "weights": '/gone/"<u>.safetensors', "<b>": "&amp;"}
    (folder / "config.json").write_text(json.dumps(config))
    page = report(folder, "--title", name, "--steps", 1)
    assert not [tag for tag, _ in page.tags if tag in ("script", "i", "u", "b")]
    assert ("title", name) in page.texts
    assert "<script>alert(1)<_script>&\"'\u00e9" in page.text()
    assert "/gone/<i>x</i>" in page.text()
    assert "&amp;" in page.text()


def test_without_samples_nothing_is_loaded_or_sampled(report, runs, monkeypatch):
    monkeypatch.setattr(figures, "load_model", None)
    assert "Figure 3" not in report(runs["unet"], "--no-samples").text()


def test_a_model_of_other_classes_is_shown_by_its_own_prompts_and_one_without_by_its_most_frequent_ones():
    thyroid = Words("t", {"benign": {"a thyroid": 3}, "cyst": {"a cyst": 2}}, frozenset(), True)
    assert figures.prompts_shown(thyroid) == [("benign", "a thyroid"), ("cyst", "a cyst")]
    assert {(one.label, one.prompt) for one in figures.drawn_examples(16, thyroid)} == {("benign", "a thyroid")}
    captions = Words("t", {"": {"a thyroid": 3, "a cyst": 2}}, frozenset(), True)
    assert figures.prompts_shown(captions) == [("a thyroid", "a thyroid"), ("a cyst", "a cyst")]
    assert figures.prompts_shown(Words("t", {}, frozenset(), True)) == [("no text", "")]


def test_the_samples_are_those_of_sampling_with_the_same_settings(runs, busi):
    (by_class, strip), notes = figures.result_figures(read_run(runs["unet"]), [busi], steps=2, seed=3)
    assert notes == []
    model = load_model(runs["unet"] / "model.safetensors")
    seeds = [3, 4, 5, 6, 7]
    expected = generate(
        model, [BREAST.prompt("benign")] * 5, seeds=seeds, sampling=Sampling(steps=2, guidance=7.5, exact=False)
    )
    label, cells = by_class.rows[1]
    assert label == "benign"
    assert [cell.tobytes() for cell in cells] == [to_picture(x.mean(dim=0, keepdim=True)).tobytes() for x in expected]
    assert by_class.columns == [f"seed {seed}" for seed in seeds]
    assert strip.columns == ["t = 501", "t = 1"]
    noise = torch.randn(1, 4, *[16 // model.config.vae.downsampling] * 2, generator=torch.Generator().manual_seed(3))
    assert strip.rows[0][1][0].tobytes() == figures.decoded(model, noise)[0].tobytes()


def test_the_originals_are_held_out_images(runs, busi):
    (figure, _), _ = figures.result_figures(read_run(runs["controlnet"]), [busi], steps=1)
    held_out = json.loads((runs["controlnet"] / "config.json").read_text())["held_out"]
    from_split = figures.read_examples({"held_out": held_out, "data_sha256": ""}, [busi], 16)[0]
    assert [name for name, _ in figure.rows] == [example.name for example in from_split]
    assert figure.columns[:2] == ["mask", "original"]


def test_the_same_runs_give_the_same_report(report, runs, tmp_path):
    report(runs["unet"], "--steps", 1)
    before = (tmp_path / "new" / "page.html").read_bytes()
    torch.manual_seed(9)
    report(runs["unet"], "--steps", 1)
    assert (tmp_path / "new" / "page.html").read_bytes() == before


def test_by_default_the_report_lies_in_the_last_run(runs):
    assert run_command(lambda: main([str(runs["vae"]), str(runs["unet"]), "--no-samples"])) == 0
    assert not (runs["vae"] / "report.html").exists()
    assert (runs["unet"] / "report.html").exists()
