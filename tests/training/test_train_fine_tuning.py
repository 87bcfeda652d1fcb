"""train.py with less to train: LoRA, learned prompts, decoders alone; what each trains, writes, and leaves alone."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import sample
import train
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.locks import locked
from ldm_us.files.lora_file import apply_lora, load_lora
from ldm_us.networks.vae import DECODER_PARTS
from ldm_us.runtime.entry import run_command
from ldm_us.training.command_line import parse_options
from ldm_us.training.stages import Stage

METHODS = {
    "lora": ("unet", ("--lora", 2)),
    "lora on the text too": ("unet", ("--lora", 2, "--train-text", "--lora-targets", "cross.k", "cross.v", "self.q")),
    "prompt": ("unet", ("--prompt-tokens", 3)),
    "prompt and lora": ("unet", ("--prompt-tokens", 3, "--lora", 2, "--lora-alpha", 8)),
    "controlnet lora": ("controlnet", ("--lora", 2)),
    "unlocked decoder": ("controlnet", ("--unlock-decoder",)),
    "vae decoder": ("vae", ("--decoder-only",)),
    "adafactor": ("unet", ("--optimizer", "adafactor")),
}
CHANGED = {  # the parts, or modules, in which some weight of the result differs
    "lora": {"unet"},
    "lora on the text too": {"unet", "text"},
    "prompt": {"text"},
    "prompt and lora": {"unet", "text"},
    "controlnet lora": {"controlnet"},
    "unlocked decoder": {"controlnet", "unet"},
    "vae decoder": {"vae"},
    "adafactor": {"unet"},
}


@pytest.fixture(scope="module")
def tuned(run, chain, tmp_path_factory):
    """A function of a method: its run of four steps, from the model that has all parts."""
    runs, folder = {}, tmp_path_factory.mktemp("tuned")

    def call(method):
        if method not in runs:
            stage, flags = METHODS[method]
            fixed = ("--steps", 4, "--ema", 0.5, "--save-every", 2)
            runs[method] = run(stage, folder / method, *fixed, *flags, weights=chain["controlnet"].path)
        return runs[method]

    return call


@pytest.fixture(scope="module")
def plain(run, chain, tmp_path_factory):
    """A function of a stage: its run without any method."""
    runs, folder = {}, tmp_path_factory.mktemp("plain")

    def call(stage):
        if stage not in runs:
            runs[stage] = run(stage, folder / stage, weights=chain["controlnet"].path)
        return runs[stage]

    return call


def changed(before, after):
    """Names of the tensors that differ, new ones included."""
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_changes_what_it_says_and_no_other_bit(tuned, chain, method):
    before, after = chain["controlnet"].weights, tuned(method).weights
    names = changed(before, after)
    assert {name.split(".")[0] for name in names} == CHANGED[method]
    if "lora" in method:
        attention = {name for name in names if ".to_" in name}
        assert attention
        whole = {"text.prompt"} if "prompt" in method else set()
        control = ("controlnet.hint_network", "controlnet.zero_conv")
        assert {name for name in names - attention if not name.startswith(control)} == whole
        assert not any(name.endswith("bias") for name in attention)
    if method == "lora on the text too":
        assert all(".to_q" in n if "self" in n else ".to_k" in n or ".to_v" in n for n in names if "unet" in n)
    if method == "prompt":
        assert names == {"text.prompt"}
        assert after["text.prompt"].shape == (3, 8)
    if method == "unlocked decoder":
        assert {name for name in names if name.startswith("unet.")} == {n for n in after if "unet.decoder" in n}
    if method == "vae decoder":
        decoder = tuple(f"vae.{part}." for part in DECODER_PARTS)
        assert names == {name for name in after if name.startswith(decoder)}


@pytest.mark.parametrize("method", ["lora", "lora on the text too", "prompt", "prompt and lora", "controlnet lora"])
def test_the_small_file_on_its_base_is_the_whole_result(tuned, chain, method):
    result = tuned(method)
    path = result.out / "lora.safetensors"
    model = load_model(chain["controlnet" if "controlnet" in method else "unet"].path)
    if "controlnet" not in method:
        model = load_model(chain["controlnet"].path)
        model.controlnet = None
    apply_lora(model, path)
    state = model.state_dict()
    assert state.keys() == result.weights.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, result.weights[name], rtol=0, atol=1e-6)
    assert path.stat().st_size < result.path.stat().st_size / 2


def test_the_small_file_knows_its_base_its_settings_and_its_lineage(tuned, chain):
    lora = load_lora(tuned("prompt and lora").out / "lora.safetensors")
    assert (lora.config.rank, lora.config.alpha, lora.config.full) == (2, 8.0, ("text.prompt",))
    lineage = json.loads(lora.metadata["lineage"])
    assert [entry["stage"] for entry in lineage] == ["vae", "unet", "controlnet", "unet"]
    assert lineage[-1]["lora"]["rank"] == 2
    assert lineage[-1]["parent_sha256"] == lora.base_sha256
    assert lineage == json.loads(read_metadata(tuned("prompt and lora").path)["lineage"])


@pytest.mark.parametrize("method", ["lora", "prompt", "controlnet lora", "adafactor", "vae decoder"])
def test_a_stopped_and_resumed_run_ends_at_the_same_bits(tuned, run, chain, tmp_path, method):
    stage, flags = METHODS[method]
    fixed = ("--ema", 0.5, "--save-every", 2, *flags)
    for steps in (2, 4):
        torch.manual_seed(steps)
        resumed = run(stage, tmp_path / "run", "--steps", steps, *fixed, weights=chain["controlnet"].path)
    assert not changed(tuned(method).weights, resumed.weights)


def test_latents_do_not_move_while_a_decoder_trains_alone(tuned, chain):
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, after = load_model(chain["controlnet"].path), load_model(tuned("vae decoder").path)
    assert torch.equal(before.vae.moments(x), after.vae.moments(x))
    assert before.vae.scale == after.vae.scale


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_gradient_checkpointing_trains_the_same_weights(run, plain, chain, tmp_path, monkeypatch, stage):
    kept = plain(stage)
    recomputed = []

    def count(block, *inputs, **settings):
        recomputed.append(block)
        return checkpoint(block, *inputs, **settings)

    monkeypatch.setattr("ldm_us.networks.recompute.checkpoint", count)
    again = run(stage, tmp_path / "again", "--gradient-checkpointing", weights=chain["controlnet"].path)
    assert len(recomputed) > 4
    for name, value in kept.weights.items():
        torch.testing.assert_close(again.weights[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_channels_last_trains_the_same_weights_to_rounding(run, plain, chain, tmp_path, monkeypatch, stage):
    rows = plain(stage)
    layouts = set()
    loss = Stage.loss

    def look(self, batch):
        kernels = [p for p in self.model.get_submodule(stage).parameters() if p.dim() == 4 and min(p.shape) > 1]
        layouts.update(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
        return loss(self, batch)

    monkeypatch.setattr(Stage, "loss", look)
    last = run(stage, tmp_path / "last", "--channels-last", weights=chain["controlnet"].path)
    assert layouts == {True}
    assert [line["loss"] for line in last.log] == pytest.approx([line["loss"] for line in rows.log], rel=1e-4)


def test_a_run_goes_on_in_another_memory_layout(run, chain, tmp_path):
    """Fused AdamW walks memory: moments of the old layout would be those of other weights."""
    fixed = ("--save-every", 2, "--ema", 0, "--batch", 2)
    straight = run("unet", tmp_path / "straight", "--steps", 6, *fixed, weights=chain["unet"].path)
    run("unet", tmp_path / "run", "--steps", 2, *fixed, weights=chain["unet"].path)
    resumed = run("unet", tmp_path / "run", "--steps", 6, "--channels-last", *fixed, weights=chain["unet"].path)
    start = chain["unet"].weights
    names = changed(start, straight.weights)
    apart = torch.cat([(straight.weights[name] - resumed.weights[name]).flatten() for name in names])
    moved = torch.cat([(straight.weights[name] - start[name]).flatten() for name in names])
    assert float(apart.norm()) < 0.03 * float(moved.norm())


def test_learned_vectors_are_trained_further_where_the_model_has_as_many(tuned, run, tmp_path):
    first = tuned("prompt")
    second = run("unet", tmp_path / "more", "--prompt-tokens", 3, weights=first.path)
    assert changed(first.weights, second.weights) == {"text.prompt"}
    assert second.weights["text.prompt"].shape == (3, 8)


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_compile_is_asked_for_the_networks_of_the_stage(run, chain, tmp_path, monkeypatch, stage):
    """Compiling itself takes minutes on a CPU: bench/training.py does it."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    run(stage, tmp_path / "run", "--compile", weights=chain["controlnet"].path)
    expected = {"vae": ["Encoder", "Decoder"], "unet": ["UNet"], "controlnet": ["UNet", "ControlNet"]}
    assert compiled == expected[stage]


def test_a_model_with_a_learned_prompt_samples(tuned, tmp_path):
    out = tmp_path / "samples"
    options = ["--weights", tuned("prompt").path, "--class", "benign", "--n", 1, "--steps", 2, "--out", out]
    assert sample.main([str(option) for option in options]) == 0
    assert len(list(out.glob("*seed0.png"))) == 1


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("vae", ("--lora", 2), "--decoder-only is what the vae stage has"),
        ("unet", ("--lora", 0), "LoRA rank 0"),
        ("unet", ("--lora", 2, "--lora-alpha", "nan"), "alpha nan"),
        ("unet", ("--lora", 999), "Use a smaller one"),
        ("unet", ("--lora-alpha", 2), "add --lora RANK"),
        ("unet", ("--lora-targets", "cross.q"), "add --lora RANK"),
        ("unet", ("--prompt-tokens", 3, "--train-text"), "leave --train-text away"),
        ("unet", ("--prompt-tokens", 76), "prompt tokens"),
        ("unet", ("--prompt-tokens", -1), "--prompt-tokens -1"),
        ("controlnet", ("--prompt-tokens", 2), "belongs to the unet stage"),
        ("controlnet", ("--lora", 2, "--unlock-decoder"), "trains whole weights"),
        ("unet", ("--unlock-decoder",), "belongs to the controlnet stage"),
        ("unet", ("--decoder-only",), "belongs to the vae stage"),
        ("unet", ("--text-warmup", 3), "add --train-text"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_options_that_do_not_go_together_are_refused(refused, chain, tmp_path, stage, flags, named):
    assert named in refused(stage, tmp_path / "run", *flags, weights=chain["controlnet"].path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--lora", 2), ("--prompt-tokens", 2), ("--decoder-only",)])
def test_what_adapts_a_model_needs_one(refused, tmp_path, flags):
    stage = "vae" if "--decoder-only" in flags else "unet"
    assert "--weights" in refused(stage, tmp_path / "run", *flags)


def test_8_bit_adam_without_its_package_names_the_extra(refused, chain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    sentence = refused("unet", tmp_path / "run", "--optimizer", "adamw8bit", weights=chain["unet"].path)
    assert "pip install -e .[memory]" in sentence


def test_the_other_run_is_set_aside_by_restart_and_not_deleted(run, refused, tmp_path):
    first = run("vae", tmp_path / "run", "--seed", 1)
    assert "add --restart to set that run aside" in refused("vae", tmp_path / "run", "--seed", 2)
    second = run("vae", tmp_path / "run", "--seed", 2, "--restart")
    assert changed(first.weights, second.weights)
    kept = load_model(tmp_path / "run-before-1" / "model.safetensors").state_dict()
    assert not changed(first.weights, kept)
    run("vae", tmp_path / "run", "--seed", 3, "--restart")
    assert (tmp_path / "run-before-2" / "model.safetensors").is_file()


def test_restart_does_not_rename_the_weights_that_it_starts_from(run, refused, tmp_path):
    first = run("vae", tmp_path / "run")
    sentence = refused("unet", tmp_path / "run", "--restart", weights=first.path)
    assert "lies in it" in sentence
    assert first.path.is_file()


def test_a_folder_that_another_process_trains_in_is_refused(run, refused, tmp_path):
    run("vae", tmp_path / "run")
    with locked(tmp_path / "run", "held already"):
        assert "is being trained by another process" in refused("vae", tmp_path / "run", "--steps", 4)
    assert run("vae", tmp_path / "run", "--steps", 4).log[-1]["step"] == 4


def test_weights_that_are_overwritten_meanwhile_do_not_reach_into_the_run(run, arguments, chain, tmp_path, monkeypatch):
    weights = Path(shutil.copy(chain["unet"].path, tmp_path / "start.safetensors"))
    expected = run("controlnet", tmp_path / "expected", weights=weights)
    loss, whole = Stage.loss, weights.read_bytes()

    def overwrite(self, batch):
        with open(weights, "r+b") as file:  # the same file, not a new one of that name
            file.seek(len(whole) // 2)
            file.write(bytes(len(whole) - len(whole) // 2))
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "loss", overwrite)
        assert run_command(lambda: train.main(arguments("controlnet", tmp_path / "run", weights=weights))) == 2
    weights.write_bytes(whole)
    result = run("controlnet", tmp_path / "run", weights=weights)
    assert not changed(expected.weights, result.weights)


def test_a_caption_that_changed_is_another_run(refused, run, chain, busi, tmp_path):
    folder = tmp_path / "captions"
    shutil.copytree(busi / "benign", folder, ignore=shutil.ignore_patterns("*_mask*"))
    rows = [{"file_name": f"benign ({9001 + i}).png", "text": f"number {i}", "class": "benign"} for i in range(4)]
    for word in ("number", "nummer"):
        lines = [json.dumps(row | {"text": row["text"].replace("number", word)}) for row in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        if word == "number":
            run("unet", tmp_path / "run", weights=chain["vae"].path, data=folder)
    sentence = refused("unet", tmp_path / "run", "--steps", 4, weights=chain["vae"].path, data=folder)
    assert "its training images are the same, but not all masks, prompts, classes, or their order" in sentence


def test_a_second_vae_stage_measures_the_scale_again_as_long_as_no_denoiser_relies_on_it(run, chain, tmp_path):
    more = run("vae", tmp_path / "more", "--lr", 1e-2, "--steps", 4, weights=chain["vae"].path)
    kept = run("vae", tmp_path / "kept", "--lr", 1e-2, "--steps", 4, weights=chain["unet"].path)
    scales = [load_model(path).vae.scale for path in (chain["vae"].path, more.path, kept.path)]
    assert scales[1] != scales[0]
    assert scales[2] == scales[0]


def test_masks_that_are_all_empty_teach_a_controlnet_nothing_and_are_refused(refused, chain, own_busi, tmp_path):
    for path in own_busi.glob("*/*_mask.png"):
        path.unlink()
    sentence = refused("controlnet", tmp_path / "run", weights=chain["unet"].path, data=own_busi)
    assert "the masks of all 8 training images are empty" in sentence
    assert not (tmp_path / "run").exists()


def test_the_help_groups_the_options(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--help-all"])
    printed = capsys.readouterr().out
    for title in ("what the unet and controlnet stages learn", "less to train", "speed, and several processes"):
        assert title in printed
