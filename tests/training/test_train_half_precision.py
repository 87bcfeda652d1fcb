"""Training in half precision: frozen networks cast once and given back, fp16's scale, what is refused and noted."""

import pytest
import torch
from safetensors.torch import load_file

import train
from ldm_us.files import half_precision
from ldm_us.networks.precision import HALF
from ldm_us.runtime.entry import run_command
from ldm_us.training.optimizers import EMA, check_scale, make_optimizer, update_weights
from ldm_us.training.stages import Stage

FROZEN = {  # stage, flags, and the beginnings of the names that are trained
    "lora": ("unet", ["--lora", 2], ("unet.",)),
    "controlnet": ("controlnet", [], ("controlnet.",)),
    "lora of a new controlnet": ("controlnet", ["--lora", 2], ("controlnet.",)),
    "decoder": ("vae", ["--decoder-only", "--validate-every", 2], ("vae.decoder.", "vae.post_quant_conv.", "grain.")),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_weights_cast_once_change_no_loss_and_the_result_has_their_float32(
    run, chain, tmp_path, monkeypatch, kind
):
    """Pictures and validation included; the LoRA is merged into float32."""
    stage, flags, trained = FROZEN[kind]
    weights = chain["controlnet" if stage == "vae" else "unet"].path
    seen, loss_of = [], Stage.loss

    def looked_at(stage, batch):
        seen.append({name: p.dtype for name, p in stage.networks.named_parameters() if not p.requires_grad})
        return loss_of(stage, batch)

    monkeypatch.setattr(Stage, "loss", looked_at)
    asked = ["--precision", "bf16", "--sample-every", 2, *flags]
    found = run(stage, tmp_path / "cast", *asked, weights=weights)
    assert HALF["bf16"] in seen[0].values()
    with monkeypatch.context() as patch:
        patch.setattr(half_precision, "cast_weights", lambda *_: None)
        expected = run(stage, tmp_path / "by_autocast", *asked, weights=weights)
    figures = [
        [{k: v for k, v in line.items() if k not in ("images_per_s", "data_share")} for line in each.log]
        for each in (found, expected)
    ]
    assert figures[0] == figures[1]
    for picture in (tmp_path / "cast" / "samples").glob("*.png"):
        assert picture.read_bytes() == (tmp_path / "by_autocast" / "samples" / picture.name).read_bytes()
    before = load_file(weights)
    for name, value in found.weights.items():
        assert value.dtype == torch.float32
        assert value.equal(expected.weights[name]), name
        if not name.startswith(trained) and not name.startswith("prior."):
            assert value.equal(before[name]), name


def test_from_random_weights_nothing_is_cast(run, tmp_path, monkeypatch):
    monkeypatch.setattr(half_precision, "cast_weights", lambda *_: pytest.fail("its float32 would be lost"))
    run("controlnet", tmp_path / "run", "--precision", "bf16")


def test_fp16_trains_and_a_resumed_run_has_the_bits_and_the_scale_of_one_that_was_not_stopped(
    run, chain, tmp_path, monkeypatch
):
    """The scale grows every two steps here, so that it differs from its start."""
    scaler_of = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler_of(*a, **k, init_scale=64.0, growth_interval=2))
    asked = ["--precision", "fp16", "--save-every", 3]
    whole = run("controlnet", tmp_path / "whole", *asked, "--steps", 6, weights=chain["unet"].path)
    run("controlnet", tmp_path / "two", *asked, "--steps", 3, weights=chain["unet"].path)
    two = run("controlnet", tmp_path / "two", *asked, "--steps", 6, weights=chain["unet"].path)
    assert all(value.equal(two.weights[name]) for name, value in whole.weights.items())
    states = [torch.load(each.out / "state" / "step_00000006.pt")["scaler"] for each in (whole, two)]
    assert states[0] == states[1]
    assert states[0]["scale"] == 64.0 * 2**3
    assert [line["skipped"] for line in whole.log] == [0.0] * 6
    plain = run("controlnet", tmp_path / "fp32", weights=chain["unet"].path)
    assert whole.log[0]["loss"] == pytest.approx(plain.log[0]["loss"], rel=0.01)


def test_a_step_whose_scaled_gradients_overflow_is_skipped_and_logged_and_the_run_goes_on(
    run, chain, tmp_path, monkeypatch
):
    scaler_of = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler_of(*a, **k, init_scale=2.0**40))
    found = run("unet", tmp_path / "run", "--precision", "fp16", "--steps", 40, weights=chain["vae"].path)
    skipped = [line["skipped"] for line in found.log]
    assert skipped[:10] == [1.0] * 10
    assert skipped.count(0.0) > 5, "the scale is halved until the gradients fit"
    assert all((line["grad_norm"] == 0.0) == (line["skipped"] == 1.0) for line in found.log)


def test_a_skipped_step_leaves_weights_and_moments_and_scales_that_never_fit_end_the_run():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, ema = make_optimizer("adamw", [weight], 0.1, 0.0), EMA({"w": weight}, 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for value, moved in ((float("inf"), False), (1.0, True)):
        before = weight.detach().clone()
        scaler.scale((weight * value).sum()).backward()
        values = update_weights(optimizer, ema, scaler, clip=1.0)
        assert (float(values["skipped"]) == 0.0) is moved
        assert (not weight.equal(before)) is moved
        assert weight.grad is None
    with pytest.raises(ValueError, match="overflow at every scale"):
        check_scale(scaler)
    check_scale(torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("vae", ["--precision", "fp16"], "--precision fp16: the vae stage"),
        ("unet", ["--precision", "tf32"], "--precision tf32: a format of NVIDIA's GPUs, and this is cpu"),
    ],
)
def test_precisions_that_a_stage_or_a_device_does_not_have_are_refused(refused, tmp_path, stage, flags, named):
    assert refused(stage, tmp_path / "run", *flags).startswith(named)
    assert not (tmp_path / "run").exists()


def test_half_precision_that_is_emulated_is_noted_before_the_first_step(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    assert run_command(lambda: train.main(arguments("unet", tmp_path / "run", "--precision", "bf16", "--dry-run"))) == 0
    assert (
        "note: --precision bf16: this CPU only emulates it, which took 2 to 27 times as long" in capsys.readouterr().err
    )
