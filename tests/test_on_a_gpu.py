"""What a GPU must show and a CPU cannot: run this file first where there is one; without one all of it is skipped."""

from contextlib import contextmanager

import pytest
import torch
from PIL import Image

import sample
from ldm_us.config import BUNDLED
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.checkpoint import load_model
from ldm_us.runtime.entry import run_command
from ldm_us.training.memory.peak import peak_bytes
from ldm_us.training.optimizers import update_weights
from ldm_us.training.stages import Stage
from ldm_us.training.start import random_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees")

STAGES = ("vae", "unet", "controlnet")
WHAT = {"vae": None, "unet": "vae", "controlnet": "unet"}  # the stage that each starts from
ON_GPU = ("--device", "cuda")


@pytest.fixture(scope="module")
def networks(micro):
    """A model on the CPU and the same on the GPU."""
    model, same = random_model("micro", 0), random_model("micro", 0)
    for each in (model, same):
        each.add_controlnet()
        for number, conv in enumerate([*each.controlnet.zero_convs, each.controlnet.zero_conv_middle]):
            torch.nn.init.normal_(conv.weight, std=0.3, generator=torch.Generator().manual_seed(number))
    return model.requires_grad_(False), same.requires_grad_(False).to("cuda")


def outputs(model: LatentDiffusion, device: str) -> list[torch.Tensor]:
    """What each network makes of the same numbers, on the CPU and in float32."""
    generator = torch.Generator().manual_seed(1)
    z, context, x = (torch.randn(shape, generator=generator) for shape in ((2, 4, 4, 4), (2, 77, 8), (2, 3, 16, 16)))
    z, context, x, t = (
        z.to(device),
        context.to(device),
        x.clamp(-1, 1).to(device),
        torch.tensor([3, 900], device=device),
    )
    control = model.controlnet(z, t, context, model.controlnet.hint_of((x[:, :1] > 0).float()))
    tokens = torch.arange(154, device=device).view(2, 77)
    made = [model.unet(z, t, context), model.unet(z, t, context, control), model.vae.moments(x), model.vae.decode(z)]
    return [value.float().cpu() for value in (*made, model.text(tokens))]


@contextmanager
def no_tf32():
    """PyTorch's own default is TF32 for convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_networks_in_float32_are_those_of_the_cpu_within_rounding(networks):
    with no_tf32():
        for a, b in zip(outputs(networks[0], "cpu"), outputs(networks[1], "cuda"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_networks_in_half_precision_are_within_their_bound_of_the_cpu(networks, dtype, bound):
    with torch.autocast("cuda", dtype):
        halves = outputs(networks[1], "cuda")
    for a, b in zip(outputs(networks[0], "cpu"), halves, strict=True):
        assert float((a - b).norm()) < bound * float(a.norm())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_trains_and_a_run_that_is_stopped_goes_on_near_the_one_that_is_not(
    run, chain, tmp_path, stage, precision
):
    """Some kernels add up in any order: the two runs differ by rounding, which Adam enlarges to parts of a step."""
    if (stage, precision) == ("vae", "fp16"):
        pytest.skip("the vae stage takes no fp16")
    weights = None if WHAT[stage] is None else chain[WHAT[stage]].path
    flags = (*ON_GPU, "--precision", precision, "--save-every", 2)
    whole = run(stage, tmp_path / "whole", "--steps", 4, *flags, weights=weights)
    run(stage, tmp_path / "parts", "--steps", 2, *flags, weights=weights)
    parts = run(stage, tmp_path / "parts", "--steps", 4, *flags, weights=weights)
    assert [line["step"] for line in parts.log] == [1, 2, 3, 4]
    for name, value in whole.weights.items():
        assert float((value - parts.weights[name]).abs().max()) <= 4e-3, name  # lr is 1e-3: two steps at most


@pytest.mark.parametrize("stage", STAGES)
def test_a_compiled_step_has_the_loss_of_a_plain_one(run, chain, tmp_path, stage):
    weights = None if WHAT[stage] is None else chain[WHAT[stage]].path
    plain = run(stage, tmp_path / "plain", *ON_GPU, weights=weights)
    fused = run(stage, tmp_path / "fused", *ON_GPU, "--compile", weights=weights)
    assert [line["loss"] for line in fused.log] == pytest.approx([line["loss"] for line in plain.log], rel=1e-2)


@pytest.fixture
def no_waiting(monkeypatch):
    """Every wait for the GPU within a loss, a backward pass and an update of the weights is an error."""

    @contextmanager
    def watched():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    calls, loss, backward = [], Stage.loss, torch.Tensor.backward

    def watch(call):
        def inside(*args, **kwargs):
            calls.append(call)
            if len(calls) <= 6:  # the first steps send tables and choose kernels
                return call(*args, **kwargs)
            with watched():
                return call(*args, **kwargs)

        return inside

    monkeypatch.setattr(Stage, "loss", watch(loss))
    monkeypatch.setattr(torch.Tensor, "backward", watch(backward))
    monkeypatch.setattr("train.update_weights", watch(update_weights))
    monkeypatch.setattr("train.check_next_loss", lambda *_: None)  # waits, before a state is saved
    return calls


@pytest.mark.parametrize("flags", [(), ("--precision", "bf16"), ("--precision", "fp16"), ("--min-snr", 5)])
@pytest.mark.parametrize("stage", STAGES)
def test_no_training_step_waits_for_the_gpu_between_log_lines(run, chain, tmp_path, no_waiting, stage, flags):
    if stage == "vae" and flags not in ((), ("--precision", "bf16")):
        pytest.skip("the vae stage has neither fp16 nor noise levels")
    weights = None if WHAT[stage] is None else chain[WHAT[stage]].path
    run(stage, tmp_path / "run", *ON_GPU, "--steps", 5, "--log-every", 5, *flags, weights=weights)
    assert len(no_waiting) >= 15


@pytest.mark.parametrize("options", [(), ("--exact",), ("--precision", "fp16"), ("--tile", "96")])
def test_a_batch_of_samples_with_masks_is_drawn_and_verified(tmp_path, options, capsys):
    mask = tmp_path / "mask.png"

    picture = Image.new("L", (128, 128))
    picture.paste(255, (40, 40, 90, 80))
    picture.save(mask)
    out = tmp_path / "out"
    asked = ["--class", "malignant", "--n", "4", "--steps", "5", "--mask", str(mask), *ON_GPU, "--out", str(out)]
    assert run_command(lambda: sample.main([*asked, *options])) == 0
    assert run_command(lambda: sample.main(["--verify", str(out), *ON_GPU])) == 0


def test_exact_samples_are_near_those_of_the_cpu():
    prompts, images = ["Ultrasound image of a benign breast"] * 2, []
    for device in ("cpu", "cuda"):
        images.append(generate(load_model(BUNDLED, device), prompts, sampling=Sampling(steps=5)).cpu())
    assert float((images[0] - images[1]).abs().mean()) < 1 / 255


def test_the_estimate_of_a_steps_memory_is_not_below_what_torch_holds(run, chain, tmp_path, monkeypatch, micro):
    asked = []
    monkeypatch.setattr("ldm_us.training.memory.fitting.peak_bytes", lambda *about: asked.append(about) or 0)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run("unet", tmp_path / "run", *ON_GPU, "--batch", 8, "--ema", 0.9, weights=chain["vae"].path)
    held, estimate = torch.cuda.max_memory_allocated() - before, peak_bytes(*asked[0])
    assert held < 2 * estimate + 64 * 2**20, "of so small a model workspaces are the most"
