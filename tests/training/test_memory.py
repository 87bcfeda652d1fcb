"""The estimate of a step's memory: what it must hold at least, what each option saves, and runs that do not fit."""

from dataclasses import replace

import pytest
import torch

import train
from ldm_us.config import SD15
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.runtime.entry import run_command
from ldm_us.training.command_line import parse_options
from ldm_us.training.memory import fitting
from ldm_us.training.memory.fitting import CONTEXT, GIB, fits, fitted_to, room
from ldm_us.training.memory.peak import Living, norm_in_float32, peak_bytes
from ldm_us.training.optimizers import EMA, make_optimizer


def options_of(tmp_path, stage, *flags):
    words = ["--data", tmp_path, "--out", tmp_path / "run", "--steps", 1, "--device", "cpu", *flags]
    start = [] if "--preset" in flags else ["--weights", "model.safetensors"]
    return parse_options([stage, *map(str, [*words, *start])])


def test_living_counts_what_there_is_at_once_and_a_view_once():
    with Living() as living:
        first = torch.zeros(100)
        view = first[10:].view(9, 10)
        second = first + 1
        assert living.bytes == 800
        del first, second
        assert living.bytes == 400, "the view holds the first"
        del view
        assert (living.bytes, living.peak) == (0, 800)


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 2), ("adafactor", None)])
def test_a_step_holds_weights_average_moments_and_its_activations_in_numbers_that_a_real_step_confirms(
    micro, tmp_path, optimizer, moments
):
    """The moments are those of a real optimizer after a step, the activations what autograd saves of a real forward."""
    options = options_of(tmp_path, "unet", "--optimizer", optimizer, "--batch", 64)
    unet = LatentDiffusion(micro).unet
    parameters = dict(unet.named_parameters())
    weights = sum(p.nbytes for p in parameters.values())
    real = make_optimizer(optimizer, parameters.values(), 1e-3, 0.0)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    real.step()
    kept = sum(v.nbytes for state in real.state.values() for v in state.values() if v.ndim)
    ema = sum(v.nbytes for v in EMA(parameters, 0.9).average.values())
    if moments:
        assert kept == moments * weights
    saved = {}

    def pack(value):
        saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        unet(torch.randn(64, 4, 4, 4), torch.arange(64), torch.randn(64, 77, 8)).square().mean()
    activations = sum(n for place, n in saved.items() if place not in {p.data_ptr() for p in parameters.values()})
    held = weights + ema + kept + activations
    assert activations > weights
    assert held <= peak_bytes(micro, options) <= 1.15 * held


def test_every_option_that_saves_memory_saves_some_and_a_larger_batch_takes_more(micro, tmp_path):
    peaks = {
        words: peak_bytes(micro, options_of(tmp_path, "unet", "--batch", 8, *words.split()))
        for words in (
            "",
            "--gradient-checkpointing",
            "--gradient-checkpointing --precision bf16",
            "--gradient-checkpointing --optimizer adafactor",
            "--gradient-checkpointing --ema 0",
            "--gradient-checkpointing --lora 4",
            "--gradient-checkpointing --lora 4 --precision bf16",
        )
    }
    plain, checkpointed, *others = peaks.values()
    assert checkpointed < plain
    assert all(other < checkpointed for other in others)
    assert peak_bytes(micro, options_of(tmp_path, "unet", "--batch", 16)) > plain
    assert peaks["--gradient-checkpointing --lora 4 --precision bf16"] < peaks["--gradient-checkpointing --lora 4"]


@pytest.mark.parametrize("flags", [("vae",), ("vae", "--decoder-only"), ("controlnet",), ("unet", "--train-text")])
def test_each_stage_has_an_estimate_above_its_weights(micro, tmp_path, flags):
    assert peak_bytes(micro, options_of(tmp_path, *flags)) > 4 * 30_000


@pytest.fixture
def peaks(monkeypatch):
    """Stand-ins for peaks in GiB: 16 of weights and what goes with them, 2 an image; checkpointing leaves a quarter."""

    def peak(config, options):
        held = 3.0 if options.lora else 10.0 if options.optimizer == "adafactor" else 16.0
        return int(GIB * (held + options.batch * (0.5 if options.gradient_checkpointing else 2.0)))

    monkeypatch.setattr(fitting, "peak_bytes", peak)


@pytest.mark.parametrize(
    ("gpu", "flags", "checkpointing", "said"),
    [
        (80, [], None, "about 24.0 GiB of memory in a step"),
        (24, [], True, "so with --gradient-checkpointing, about 18.0 GiB"),
        (None, [], None, "about 24.0 GiB of memory in a step"),
        (24, ["--lora", 8], None, "about 11.0 GiB of memory in a step"),
    ],
)
def test_a_run_that_fits_is_left_alone_and_one_that_does_not_is_checkpointed(
    tmp_path, peaks, gpu, flags, checkpointing, said
):
    options = options_of(tmp_path, "unet", *flags)
    found, line = fitted_to(SD15, options, gpu and gpu * GIB)
    assert found == replace(options, gradient_checkpointing=checkpointing)
    assert line.endswith(said)


@pytest.mark.parametrize(
    ("gpu", "flags", "advice"),
    [
        (24, ["--no-gradient-checkpointing"], "What would fit: --gradient-checkpointing, about 18.0 GiB."),
        (20, ["--batch", 8], "--gradient-checkpointing --batch 2 --accumulate 4, about 17.0 GiB."),
        (16, [], "--gradient-checkpointing --batch 1 --accumulate 4 --optimizer adafactor, about 10.5 GiB."),
        (8, [], "--gradient-checkpointing --batch 1 --accumulate 4 --lora 8, about 3.5 GiB."),
        (4, [], "too little for this model. Use a smaller --size, a larger GPU, or --shard on several."),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_what_would(tmp_path, peaks, gpu, flags, advice):
    with pytest.raises(ValueError, match="GiB of memory in a step, and cpu has") as refusal:
        fitted_to(SD15, options_of(tmp_path, "unet", *flags), gpu * GIB)
    assert str(refusal.value).endswith(advice)


def test_the_first_fine_tuning_command_fits_a_card_of_24_gb_a_controlnet_one_of_16_and_a_lora_one_of_8(tmp_path):
    """As docs/use.md gives them, with --gradient-checkpointing as `fitted` adds it; cards have 23.6, 15.6, 7.6 GiB."""

    def peak(*flags):
        return peak_bytes(SD15, options_of(tmp_path, *flags, "--precision", "bf16", "--gradient-checkpointing"))

    assert fits(peak("unet"), 23.6 * GIB)
    assert fits(peak("controlnet"), 15.6 * GIB)
    assert fits(lora := peak("unet", "--lora", 8), 7.6 * GIB)
    assert not fits(lora, lora), "CUDA itself needs some"


def test_layer_norms_see_float32_under_autocast_as_on_a_gpu():
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    norm_in_float32(layers)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers[0](torch.ones(2, 8)).dtype == torch.bfloat16
        assert layers(torch.ones(2, 8)).dtype == torch.float32


def test_what_others_hold_of_a_gpu_and_idle_networks_on_it_are_no_room_for_a_step(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    model = LatentDiffusion(micro)
    idle = sum(p.nbytes for part in (model.vae, model.text) for p in part.parameters())
    assert room(model, options_of(tmp_path, "unet")) == 12 * GIB + CONTEXT - idle
    model.vae.to("meta")
    model.text.to("meta")
    assert room(model, options_of(tmp_path, "unet")) == 12 * GIB + CONTEXT, "parts that were not loaded take none"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24 * GIB, 24 * GIB))
    assert room(model, options_of(tmp_path, "unet")) == 24 * GIB


def test_a_gpu_that_is_too_small_ends_the_command_before_the_folder_is_made(
    arguments, tmp_path, monkeypatch, peaks, capsys
):
    monkeypatch.setattr(train, "fitted", lambda model, options: fitted_to(model.config, options, 4 * GIB))
    argv = arguments("unet", tmp_path / "run")
    assert run_command(lambda: train.main(argv)) == 2
    assert "error: about 20.0 GiB of memory in a step, and cpu has 4.0 GiB for it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_the_estimate(arguments, tmp_path, peaks, capsys):
    assert run_command(lambda: train.main(arguments("unet", tmp_path / "run", "--dry-run"))) == 0
    assert "fp32 on cpu, about 20.0 GiB of memory in a step" in capsys.readouterr().out
