"""`python -m weights_convert export`: the files it writes, what it says, and what it refuses."""

import dataclasses
import hashlib
import json
import os
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_us.config import SD15, US128
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, model_metadata, save_model
from tests.conftest import MICRO
from weights_convert.__main__ import main as weights_convert_main
from weights_convert.summary import in_yaml, unlike_sd15

FORMATS = ("compvis", "diffusers", "controlnet", "lora")
WEIGHTS = [
    "controlnet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
TEXTS = [f"{part}/config.json" for part in ("controlnet", "text_encoder", "unet", "vae")]
TEXTS += [f"tokenizer/{name}.json" for name in ("special_tokens_map", "tokenizer_config", "vocab")]
TEXTS += ["tokenizer/merges.txt", "scheduler/scheduler_config.json", "model_index.json"]


@cache
def made(config, controlnet=True):
    """A model of random weights, to be read only; no tensor of it is zero all over."""
    model = LatentDiffusion(config)
    if controlnet:
        model.add_controlnet()
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        value.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    save_model(made(MICRO), path, {"stage": "controlnet", "lineage": '[{"stage": "unet"}]'})
    return path


@pytest.fixture(scope="module")
def without_controlnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "plain.safetensors"
    save_model(made(MICRO, controlnet=False), path)
    return path


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_compvis_file_holds_the_model_without_its_controlnet_and_says_so(export, model_file, tmp_path):
    out = tmp_path / "out.safetensors"
    code, text, error = export(model_file, "--format", "compvis", "--out", out)
    assert (code, error) == (0, "")
    found = load_file(out)
    ours = load_file(model_file)
    assert torch.equal(found["model.diffusion_model.out.2.bias"], ours["unet.decoder.conv_out.bias"])
    starts = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.")
    assert all(name.startswith(starts) for name in found)
    control = sum(name.startswith("controlnet.") for name in ours)
    assert len(found) == len(ours) - control + 1  # position_ids
    assert os.listdir(tmp_path) == ["out.safetensors"]
    assert f"left out {control:4}: controlnet: --format controlnet writes it" in text
    assert f"read {model_file}  sha256 {digest(model_file)}" in text
    assert f"wrote {out}  {out.stat().st_size:,} bytes  sha256 {digest(out)}" in text
    parameters = sum(value.numel() for name, value in ours.items() if name.startswith("unet."))
    assert f"{parameters:,} parameters  float32" in text


def test_a_controlnet_is_a_file_of_its_own(export, model_file, tmp_path):
    out = tmp_path / "out.safetensors"
    code, text, _ = export(model_file, "--format", "controlnet", "--out", out)
    assert code == 0
    found, ours = load_file(out), load_file(model_file)
    assert all(name.startswith("control_model.") for name in found)
    assert len(found) == sum(name.startswith("controlnet.") for name in ours)
    assert torch.equal(found["control_model.middle_block_out.0.bias"], ours["controlnet.zero_conv_middle.bias"])
    assert "unet: a ControlNet's file holds it alone" in text


@pytest.mark.parametrize("controlnet", [True, False])
def test_a_diffusers_folder_is_complete_with_or_without_a_controlnet(
    controlnet, export, model_file, without_controlnet, tmp_path
):
    source = model_file if controlnet else without_controlnet
    code, text, error = export(source, "--format", "diffusers", "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    expected = sorted(name for name in WEIGHTS + TEXTS if controlnet or not name.startswith("controlnet/"))
    assert listed(tmp_path / "out") == expected
    index = json.loads((tmp_path / "out" / "model_index.json").read_text(encoding="utf-8"))
    components = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    assert components | ({"controlnet"} if controlnet else set()) == {name.split("/")[0] for name in expected[:-1]} - {
        "model_index.json"
    }
    for name in expected:
        if name in WEIGHTS:
            assert f"wrote {tmp_path / 'out' / name}" in text
            assert digest(tmp_path / "out" / name) in text
    assert ("ControlNetModel.from_pretrained" in text) == controlnet
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_weights_take_the_type_asked_for_and_position_ids_stay_whole_numbers(name, export, model_file, tmp_path):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    arguments = ("--format", "compvis", "--out", tmp_path / "out.safetensors", "--dtype", name)
    _, text, _ = export(model_file, *arguments)
    found = load_file(tmp_path / "out.safetensors")
    ids = found.pop("cond_stage_model.transformer.text_model.embeddings.position_ids")
    assert torch.equal(ids, torch.arange(77).view(1, 77))
    assert {value.dtype for value in found.values()} == {dtype}
    bias = load_file(model_file)["unet.decoder.conv_out.bias"]
    assert torch.equal(found["model.diffusion_model.out.2.bias"], bias.to(dtype))
    assert f"{str(dtype).removeprefix('torch.')}, position_ids int64" in text


@pytest.mark.parametrize("format", ["compvis", "diffusers"])
def test_an_import_of_an_export_gives_back_config_history_and_weights(format, export, convert, tmp_path):
    config = dataclasses.replace(MICRO, vae=dataclasses.replace(MICRO.vae, scale=0.5))  # as no preset has it
    save_model(made(config, controlnet=False), tmp_path / "a.safetensors", {"stage": "unet", "lineage": '["x"]'})
    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    assert export(tmp_path / "a.safetensors", "--format", format, "--out", out)[0] == 0
    assert convert(out, "--out", tmp_path / "b.safetensors", preset=None)[0] == 0
    assert load_model(tmp_path / "b.safetensors").config == config
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert (file.metadata()["stage"], file.metadata()["lineage"]) == ("unet", '["x"]')
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_exported_folder_with_an_exchanged_part_is_imported_as_any_other(export, convert, model_file, tmp_path):
    assert export(model_file, "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    path = tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path), path)  # somebody else's: no metadata
    code, _, error = convert(tmp_path / "out", "--out", tmp_path / "b.safetensors", preset=None)
    assert code == 2
    assert "Choose a --preset of these sizes" in error


def test_what_a_compvis_file_cannot_say_is_noted_and_of_sd15_nothing(export, model_file, tmp_path):
    _, text, _ = export(model_file, "--format", "compvis", "--out", tmp_path / "out.safetensors")
    (note,) = (line for line in text.splitlines() if line.startswith("note: not as in SD 1.5"))
    assert "vae.width 8, " in note
    assert "text.layers 1, " in note
    assert "hint_channels" not in note  # of the ControlNet, which is not in the file
    model, nowhere = {"vae", "text", "unet"}, lambda config: None
    assert [*unlike_sd15(SD15, model, in_yaml)] == [*unlike_sd15(SD15, {"controlnet"}, nowhere)] == []
    assert "control.hint_channels (16, 32, 64)" in [*unlike_sd15(US128, {"controlnet"}, nowhere)]
    v = dataclasses.replace(SD15, schedule=dataclasses.replace(SD15.schedule, prediction="v", guidance=3.0))
    assert [*unlike_sd15(v, model, in_yaml)] == []  # the .yaml says it
    noise = dataclasses.replace(v, schedule=dataclasses.replace(v.schedule, zero_terminal_snr=True))
    assert [*unlike_sd15(noise, model, in_yaml)] == []  # a mark says it
    assert "schedule.zero_terminal_snr True" in [*unlike_sd15(noise, {"controlnet"}, nowhere)]
    assert [*unlike_sd15(v, {"controlnet"}, nowhere)] == ["schedule.prediction v"]


@pytest.mark.parametrize("first", [0, 1])
def test_a_first_timestep_that_the_pipeline_would_replace_is_noted(first, export, tmp_path):
    schedule = dataclasses.replace(MICRO.schedule, first_timestep=first)
    save_model(made(dataclasses.replace(MICRO, schedule=schedule)), tmp_path / "model.safetensors")
    _, text, _ = export(tmp_path / "model.safetensors", "--format", "diffusers", "--out", tmp_path / "out")
    assert ("steps_offset=0" in text) == (first == 0)
    assert text.count("\nload ") == 2


def noisy(controlnet=False):
    """A model whose decoder adds noise, in its two finest levels."""
    return made(dataclasses.replace(MICRO, vae=dataclasses.replace(MICRO.vae, noise_levels=2)), controlnet)


@pytest.mark.parametrize("format", ["compvis", "diffusers"])
def test_gains_of_noise_are_left_out_and_the_decoder_is_ours_without_noise(format, export, convert, tmp_path):
    save_model(noisy(), tmp_path / "a.safetensors")
    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    code, text, _ = export(tmp_path / "a.safetensors", "--format", format, "--out", out)
    assert code == 0
    assert "left out    4: vae.decoder.noise_gains: no place for it in this layout" in text
    assert "noise_levels" not in text
    vae = [value for name, value in noisy().state_dict().items() if name.startswith("vae.") and "gains" not in name]
    assert f"{len(vae):5} tensors {sum(value.numel() for value in vae):13,} parameters" in text
    assert convert(out, "--out", tmp_path / "b.safetensors", preset=None)[0] == 0
    plain = load_model(tmp_path / "b.safetensors")
    assert plain.config == MICRO
    z_0, noise = torch.ones(1, 4, 4, 4), torch.ones(1, noisy().vae.noise_size(4, 4))
    assert torch.equal(plain.vae.decode(z_0), noisy().vae.decode(z_0))
    assert not torch.equal(plain.vae.decode(z_0), noisy().vae.decode(z_0, noise))


def test_a_controlnet_alone_says_nothing_of_gains(export, tmp_path):
    save_model(noisy(controlnet=True), tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    code, text, _ = export(tmp_path / "a.safetensors", "--format", "controlnet", "--out", out)
    assert (code, "noise_gains" in text) == (0, False)


def test_an_import_and_an_audit_of_a_file_of_ours_keep_the_gains(convert, export, model_file, tmp_path):
    """Also where another part comes from a file of other names, which has an autoencoder without gains."""
    save_model(noisy(), tmp_path / "a.safetensors")
    export(model_file, "--format", "compvis", "--out", tmp_path / "theirs.safetensors")
    for name, flags in {"b": (), "c": ("--text", tmp_path / "theirs.safetensors")}.items():
        out = tmp_path / f"{name}.safetensors"
        assert convert(tmp_path / "a.safetensors", *flags, "--out", out, preset=None)[0] == 0
        after, before = load_model(out), noisy()
        assert after.config == before.config
        for gain, expected in zip(after.vae.decoder.noise_gains, before.vae.decoder.noise_gains, strict=True):
            assert torch.equal(gain, expected)
    assert weights_convert_main(["audit", str(tmp_path / "a.safetensors"), "--csv", str(tmp_path / "a.csv")]) == 0
    rows = [row.split(",") for row in (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()]
    assert sum("vae.decoder.noise_gains." in row[0] for row in rows) == 4


# What is refused


def prompted(folder):
    config = dataclasses.replace(MICRO, text=dataclasses.replace(MICRO.text, prompt_tokens=2))
    save_model(made(config), folder / "prompted.safetensors")
    return folder / "prompted.safetensors"


def without_one_tensor(folder):
    state = made(MICRO).state_dict()
    del state["unet.decoder.conv_out.bias"]
    save_file(state, folder / "cut.safetensors", model_metadata(MICRO))
    return folder / "cut.safetensors"


def saved(tensors, path):
    save_file(tensors, path)
    return path


BAD = {  # what is wrong -> FILE, made in a folder, the format, and what the sentence says
    "no file": (lambda folder: folder / "none.safetensors", "compvis", "no such file or folder"),
    "learned prompt, compvis": (prompted, "compvis", "learned prompt of 2 tokens"),
    "learned prompt, diffusers": (prompted, "diffusers", "learned prompt of 2 tokens"),
    "cut": (without_one_tensor, "compvis", "1 missing (unet.decoder.conv_out.bias)"),
    "a LoRA": (
        lambda folder: saved({"a.lora_up.weight": torch.ones(2)}, folder / "x.safetensors"),
        "compvis",
        "is a LoRA",
    ),
    "not ours": (
        lambda folder: saved({"model.diffusion_model.out.2.bias": torch.ones(4)}, folder / "x.safetensors"),
        "compvis",
        "not a model file of ours. Make one of it with `python -m weights_convert import",
    ),
    "no config": (
        lambda folder: saved({"unet.decoder.conv_out.bias": torch.ones(4)}, folder / "x.safetensors"),
        "compvis",
        "not a model file of ours",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_no_file(what, export, tmp_path):
    make, format, sentence = BAD[what]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = make(tmp_path / "in")
    code, text, error = export(source, "--format", format, "--out", tmp_path / "out" / "out.safetensors")
    assert (code, text) == (2, "")
    assert error.startswith(f"error: {source}")
    assert sentence in error
    assert error.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_without_a_controlnet_has_none_to_export(export, without_controlnet, tmp_path):
    code, _, error = export(without_controlnet, "--format", "controlnet", "--out", tmp_path / "out.safetensors")
    assert code == 2
    assert "but no controlnet, which --format controlnet writes. Give a model that has one." in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "lora"])
def test_numbers_that_fp16_cannot_hold_are_refused_and_nothing_is_written(format, export, tmp_path):
    state = {name: value.clone() for name, value in made(MICRO).state_dict().items()}
    for name in ("unet.decoder.conv_out.bias", "controlnet.zero_conv_middle.bias"):
        state[name][0] = 1e5
    save_file(state, tmp_path / "model.safetensors", model_metadata(MICRO))
    arguments = ("--format", format, "--out", tmp_path / "out.safetensors", "--dtype", "fp16")
    code, _, error = export(tmp_path / "model.safetensors", *arguments)
    assert code == 2
    assert "has numbers too large for torch.float16. Choose another --dtype." in error
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("format", "part", "limit"),
    [("compvis", "out", 1000), ("diffusers", "vocab", 1000), ("diffusers", "model.safetensors", 100_000)],
)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    format, part, limit, export, model_file, tmp_path, full_disk, monkeypatch
):
    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    assert export(model_file, "--format", format, "--out", out)[0] == 0
    before = {name: digest(tmp_path / name) for name in listed(tmp_path)}
    full_disk(part, limit, monkeypatch)
    code, _, error = export(model_file, "--format", format, "--out", out, "--overwrite", "--dtype", "bf16")
    assert code == 2
    assert error.count("\n") == 1
    assert f"error: {out}: the disk is full; nothing was written." in error
    assert {name: digest(tmp_path / name) for name in listed(tmp_path)} == before
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("format", ["compvis", "diffusers"])
def test_an_interrupt_leaves_what_was_there_and_nothing_else(
    format, there, export, tmp_path_factory, tmp_path, monkeypatch
):
    schedule = dataclasses.replace(MICRO.schedule, prediction="v")  # which a .yaml beside a compvis file says
    model = tmp_path_factory.mktemp("v") / "v.safetensors"
    save_model(made(dataclasses.replace(MICRO, schedule=schedule)), model)
    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    if there:
        assert export(model, "--format", format, "--out", out)[0] == 0
    before = {name: digest(tmp_path / name) for name in listed(tmp_path)}
    assert len(before) == (0 if not there else 2 if format == "compvis" else len(WEIGHTS + TEXTS))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("weights_convert.convert.load_piece", interrupted)
    code, _, error = export(model, "--format", format, "--out", out, "--overwrite", "--dtype", "bf16")
    assert (code, error) == (130, "interrupted\n")  # by a process of its own: "interrupted: nothing was written"
    assert {name: digest(tmp_path / name) for name in listed(tmp_path)} == before


def test_the_place_for_the_result_is_checked_before_any_work(export, model_file, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine", encoding="ascii")
    (tmp_path / "there.safetensors").write_text("mine", encoding="ascii")
    before = listed(tmp_path)
    for format, out, options, sentence in (
        ("compvis", "there.safetensors", (), "the file exists. Add --overwrite"),
        ("compvis", "folder", (), "--out is a folder"),
        ("controlnet", "out.ckpt", (), "the result is a .safetensors file"),
        ("diffusers", "there.safetensors", (), "--out is a file. Name a folder"),
        ("diffusers", "folder", (), "the folder exists. Add --overwrite"),
        ("diffusers", "folder", ("--overwrite",), "holds notes.txt, which no export wrote"),
        ("diffusers", "no/folder", (), "there is no folder"),
        ("compvis", model_file, ("--overwrite",), "--out would overwrite"),
    ):
        code, _, error = export(model_file, "--format", format, "--out", tmp_path / out, *options)
        assert code == 2
        assert error.startswith(f"error: {tmp_path / out}: {sentence}")
    assert listed(tmp_path) == before


def test_a_folder_of_an_earlier_export_is_replaced_as_a_whole(export, model_file, without_controlnet, tmp_path):
    assert export(model_file, "--format", "diffusers", "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "controlnet").is_dir()
    arguments = ("--format", "diffusers", "--out", tmp_path / "out", "--overwrite")
    assert export(without_controlnet, *arguments)[0] == 0
    assert not (tmp_path / "out" / "controlnet").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_the_help_names_every_option_on_one_screen(export, capsys):
    with pytest.raises(SystemExit) as end:
        export("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in (*FORMATS, "--format", "--out", "--dtype", "--overwrite"))
    assert len(text.splitlines()) < 40
