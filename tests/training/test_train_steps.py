"""train.py: the steps themselves. Warm-up, clipping, accumulation, precision, lengths, and the dry run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import train
from ldm_us.runtime.entry import run_command
from ldm_us.training.command_line import parse_options
from ldm_us.training.start import random_model


def test_the_learning_rate_warms_up_in_a_line_and_then_stays(run, tmp_path):
    result = run("vae", tmp_path / "run", "--steps", 6, "--warmup", 4)
    assert [line["lr"] for line in result.log] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_first_step_moves_no_weight_further_than_the_warmed_up_learning_rate(run, tmp_path, warmup):
    """Adam's first update is lr times the sign of the gradient."""
    flags = ("--steps", 1, "--warmup", warmup, "--ema", 0, "--weight-decay", 0)
    after, before = run("vae", tmp_path / "run", *flags).weights, random_model("micro", seed=0).state_dict()
    largest = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert largest == pytest.approx(1e-3 / max(1, warmup), rel=1e-2)


@pytest.fixture
def norms(monkeypatch):
    """The norm of the gradients that every optimiser step is given."""
    seen = []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            seen.append(float(torch.cat(gradients).norm()))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    return seen


def test_gradients_longer_than_clip_are_cut_to_it(run, tmp_path, norms):
    result = run("vae", tmp_path / "run", "--clip", 0.01)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert all(line["grad_norm"] > 0.1 for line in result.log), "the log tells the norm before"


def test_gradients_shorter_than_clip_are_left_alone(run, tmp_path, norms):
    result = run("vae", tmp_path / "run", "--clip", 1e6)
    assert norms == pytest.approx([line["grad_norm"] for line in result.log], rel=1e-5)


@pytest.mark.parametrize("stage", ["vae", "unet"])
def test_two_accumulated_batches_of_2_are_one_batch_of_4(run, tmp_path, stage):
    whole = run(stage, tmp_path / "whole", "--batch", 4, "--clip", 1e6)
    parts = run(stage, tmp_path / "parts", "--batch", 2, "--accumulate", 2, "--clip", 1e6)
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in parts.log] == pytest.approx([line[name] for line in whole.log], rel=1e-4)
    start = random_model("micro", seed=0).state_dict()
    moved = torch.cat([(whole.weights[name] - value).flatten() for name, value in start.items()])
    apart = torch.cat([(whole.weights[name] - parts.weights[name]).flatten() for name in start])
    assert float(apart.norm()) < 0.02 * float(moved.norm())  # Adam enlarges the rounding of gradients that are zero
    assert float(apart.abs().quantile(0.99)) < 1e-5


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_bf16_runs_and_is_near_fp32_but_not_equal_to_it(run, chain, tmp_path, stage):
    weights = None if stage == "vae" else chain["unet"].path
    exact = run(stage, tmp_path / "fp32", weights=weights)
    rounded = run(stage, tmp_path / "bf16", "--precision", "bf16", weights=weights)
    a, b = exact.log[0]["loss"], rounded.log[0]["loss"]
    assert b == pytest.approx(a, rel=0.02)
    assert a != b
    assert all(value.dtype == torch.float32 for value in rounded.weights.values())


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (1.5, 6), (0.01, 1)])
def test_epochs_are_passes_over_the_training_images(run, tmp_path, epochs, steps):
    """Eight of the eleven images are not held out: four batches of two."""
    assert run("vae", tmp_path / "run", "--epochs", epochs).log[-1]["step"] == steps


def test_log_lines_hold_the_mean_since_the_line_before(run, tmp_path):
    every = [line["loss"] for line in run("vae", tmp_path / "one", "--steps", 5).log]
    by_two = run("vae", tmp_path / "two", "--steps", 5, "--log-every", 2).log
    assert [line["step"] for line in by_two] == [2, 4, 5]
    expected = [np.mean(every[0:2]), np.mean(every[2:4]), every[4]]
    assert [line["loss"] for line in by_two] == pytest.approx(expected, rel=1e-6)


def test_a_dry_run_tells_the_resolved_settings_and_writes_nothing(arguments, tmp_path, capsys):
    argv = arguments("unet", tmp_path / "run", "--dry-run", "--epochs", 2)
    assert run_command(lambda: train.main(argv)) == 0
    printed = capsys.readouterr().out
    unet = sum(p.numel() for p in random_model("micro", seed=0).unet.parameters())
    assert f"{unet:,} of " in printed
    assert "8 training images, 3 held out" in printed
    assert '"steps": 8' in printed
    assert '"name": "micro"' in printed
    assert list(tmp_path.iterdir()) == []


def test_training_lowers_the_loss_of_the_autoencoder(run, tmp_path):
    """On noise images no autoencoder gets far; the mean grey is learnt at once."""
    losses = [line["loss"] for line in run("vae", tmp_path / "run", "--steps", 30, "--lr", 1e-2).log]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:2])


def test_the_help_says_that_the_defaults_are_ours(capsys):
    with pytest.raises(SystemExit) as raised:
        train.main(["--help"])
    assert raised.value.code == 0
    assert "the defaults are ours, after the field's" in " ".join(capsys.readouterr().out.split())


def test_the_progress_bar_shows_the_loss_and_images_per_second(run, tmp_path, capsys):
    loss = run("vae", tmp_path / "run", "--steps", 1).log[0]["loss"]
    bar = capsys.readouterr().err
    assert f"loss={loss:.4f}" in bar
    assert "images_per_s=" in bar


@pytest.mark.parametrize(("stage", "lr"), [("vae", 4.5e-6 * 12), ("unet", 1e-5), ("controlnet", 1e-5)])
def test_the_default_learning_rate_is_the_one_that_the_field_uses(tmp_path, stage, lr):
    """LDM's autoencoders: 4.5e-6 for each image of a step; fine-tuning and ControlNet: 1e-5."""
    argv = [stage, "--preset", "sd15", "--data", "x", "--out", str(tmp_path), "--steps", "1"]
    options = parse_options([*argv, "--batch", "3", "--accumulate", "4"])
    assert options.learning_rate == pytest.approx(lr)


def test_a_controlnet_drops_half_of_the_captions_and_a_run_begun_with_the_old_share_keeps_it(run, chain, tmp_path):
    """ControlNet, section 3.3: 50 % of the prompts are replaced by empty ones. It was 0.1 here before."""

    def share(stage, out, *flags):
        argv = [stage, "--preset", "micro", "--data", "x", "--out", str(out), "--steps", "1", *flags]
        return parse_options(argv).caption_dropout

    assert [share(stage, tmp_path / "new") for stage in ("vae", "unet", "controlnet")] == [0.1, 0.1, 0.5]
    assert share("controlnet", tmp_path / "new", "--caption-dropout", "0.3") == 0.3
    run("controlnet", tmp_path / "old", "--caption-dropout", 0.1, weights=chain["unet"].path)
    result = run("controlnet", tmp_path / "old", "--steps", 3, weights=chain["unet"].path)
    assert [line["step"] for line in result.log] == [1, 2, 3]
    assert share("controlnet", tmp_path / "old", "--restart") == 0.5


@pytest.mark.parametrize(
    ("stage", "start", "flags", "said"),
    [
        ("unet", "controlnet", (), "the ControlNet of {weights} fits the old denoiser alone: the result has none."),
        ("unet", None, (), "the autoencoder is random"),
        ("controlnet", None, (), "the denoiser is random"),
        ("controlnet", "vae", (), "the denoiser is random"),
        ("vae", "unet", (), "the denoiser of {weights} fits the old latents"),
        ("vae", "unet", ("--decoder-only",), None),
        ("vae", None, (), None),
        ("unet", "unet", (), None),
        ("controlnet", "unet", (), None),
    ],
)
def test_what_a_stage_loses_or_lacks_in_its_start_is_said_in_a_note(
    arguments, chain, tmp_path, capsys, stage, start, flags, said
):
    weights = None if start is None else chain[start].path
    assert train.main(arguments(stage, tmp_path / "run", "--dry-run", *flags, weights=weights)) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == (said is not None)
    assert all(said.format(weights=weights) in note for note in notes)


def test_captions_that_name_a_side_are_counted_where_images_are_mirrored(arguments, tmp_path, capsys):
    texts = ["a cyst of the Left breast", "a mass at 3 o'clock", "a bright cleft", "an upright probe"]
    lines = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(texts)]
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        Image.effect_noise((32, 32), 50 + i).save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for flags, count in (((), 1), (("--no-flip",), 0)):
        argv = arguments("unet", tmp_path / "run", "--dry-run", "--held-out", 0, *flags, data=folder)
        assert train.main(argv) == 0
        assert capsys.readouterr().err.count("note: 2 of 4 captions name a side ('a cyst of the Left breast')") == count


def test_a_run_that_can_hold_nothing_out_says_so_and_says_what_it_read(arguments, tmp_path, capsys):
    lines = []
    for i in range(3):
        Image.effect_noise((32, 32), 50 + i).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "a scan", "patient": "one"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for share, count in ((0.3, 1), (0, 0)):
        argv = arguments("unet", tmp_path / "run", "--dry-run", "--held-out", share, data=tmp_path)
        assert train.main(argv) == 0
        printed = capsys.readouterr()
        assert printed.err.count(f"note: --held-out {share} holds no image out") == count
        assert f"imagefolder in {tmp_path}: 3 images (3 unknown), 0 masks" in printed.out
