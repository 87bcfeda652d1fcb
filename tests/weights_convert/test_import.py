"""`python -m weights_convert import`: the file it writes, what it says, and what it refuses."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_us.config import TINY
from ldm_us.files.checkpoint import load_model
from tests.golden.converted import convert_state_dict
from tests.golden.original import tiny_compvis, to_diffusers
from weights_convert.summary import KNOWN

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = {"unet": "unet", "vae": "vae", "text_encoder": "text"}


@pytest.fixture(scope="module")
def ours():
    return convert_state_dict(tiny_compvis(), TINY)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def without_control(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith("controlnet.")}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_compvis_file_becomes_a_model_that_loads(convert, inputs, tmp_path, ours):
    out = tmp_path / "out.safetensors"
    code, text, error = convert(inputs / "model.safetensors", "--out", out)
    assert (code, error) == (0, "")
    assert_same(load_file(out), without_control(ours))
    model = load_model(out)
    assert model.config == TINY
    assert model.controlnet is None
    assert os.listdir(tmp_path) == ["out.safetensors"]
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    source = {"file": "model.safetensors", "sha256": digest(inputs / "model.safetensors"), "ema": False}
    assert json.loads(metadata["sources"]) == [source | {"parts": ["vae", "text", "unet"]}]
    assert metadata["stage"] == "import"
    for expected in (source["sha256"], digest(out), "vae (compvis), text (transformers), unet (compvis)", "float32"):
        assert expected in text
    parameters = sum(value.numel() for name, value in ours.items() if name.startswith("unet."))
    assert f"{parameters:,} parameters" in text
    assert "ignored    1: the numbers 0 to 76" in text


def test_an_original_is_named_by_its_digest_and_any_other_file_is_said_to_be_unknown(
    convert, inputs, tmp_path, monkeypatch
):
    out = tmp_path / "out.safetensors"
    _, text, _ = convert(inputs / "model.safetensors", "--out", out)
    assert "is not known" in text
    assert "this is" not in text
    entry = {"file": "sd.safetensors", "of": "someone/sd", "licence": "CC0"}
    monkeypatch.setitem(KNOWN, digest(inputs / "model.safetensors"), entry)
    _, text, _ = convert(inputs / "model.safetensors", "--out", tmp_path / "again.safetensors")
    assert "this is sd.safetensors of someone/sd; licence: CC0" in text
    assert "is not known" not in text
    _, text, _ = convert(out, "--out", tmp_path / "ours.safetensors", preset=None)  # its lineage says where it is from
    assert "is not known" not in text


def test_the_digests_of_originals_are_whole_and_docs_use_md_lists_the_same():
    assert all(len(bytes.fromhex(sha256)) == 32 and KNOWN[sha256]["sha256"] == sha256 for sha256 in KNOWN)
    page = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \| `([0-9a-f]{64})` \|$", page, re.MULTILINE)
    found = {sha256: (file, of.replace("`", ""), licence) for file, of, licence, sha256 in rows}
    assert found == {sha256: (entry["file"], entry["of"], entry["licence"]) for sha256, entry in KNOWN.items()}


def test_a_controlnet_and_a_text_encoder_are_taken_from_other_files(convert, inputs, tmp_path, ours):
    out = tmp_path / "out.safetensors"
    options = ("--controlnet", inputs / "control.pth", "--text", inputs / "clip.safetensors")
    code, text, _ = convert(inputs / "model.safetensors", "--out", out, *options)
    assert code == 0
    assert_same(load_file(out), ours)
    assert load_model(out).controlnet is not None
    assert "text: taken from another file" in text
    assert "temperature of CLIP's training loss" in text


def test_a_whole_controlnet_checkpoint_gives_everything_or_only_the_controlnet(convert, inputs, tmp_path, ours):
    torch.save({"state_dict": tiny_compvis()}, tmp_path / "whole.ckpt")
    assert convert(tmp_path / "whole.ckpt", "--out", tmp_path / "a.safetensors")[0] == 0
    options = ("--controlnet", tmp_path / "whole.ckpt")
    code, text, _ = convert(inputs / "model.safetensors", "--out", tmp_path / "b.safetensors", *options)
    assert code == 0
    assert "unet: only the controlnet is taken from this file" in text
    for name in ("a", "b"):
        assert_same(load_file(tmp_path / f"{name}.safetensors"), ours)


def test_a_model_file_of_ours_takes_a_controlnet_and_keeps_its_config_and_history(convert, inputs, tmp_path, ours):
    assert convert(inputs / "model.safetensors", "--out", tmp_path / "a.safetensors")[0] == 0
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    config["vae"]["scale"] = 0.5  # a fine-tuned model may differ from every preset
    metadata |= {"config": json.dumps(config), "lineage": '[{"stage": "unet"}]'}
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "tuned.safetensors", metadata)
    options = ("--controlnet", inputs / "control.pth", "--out", tmp_path / "b.safetensors")
    assert convert(tmp_path / "tuned.safetensors", *options, preset=None)[0] == 0
    assert_same(load_file(tmp_path / "b.safetensors"), ours)
    assert load_model(tmp_path / "b.safetensors").vae.scale == 0.5
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lineage"]) == [{"stage": "unet"}]
    code, _, error = convert(tmp_path / "tuned.safetensors", "--out", tmp_path / "c.safetensors", preset="us128")
    assert code == 2
    assert "carries its own config, tiny. Leave --preset us128 out." in error


@pytest.mark.parametrize("ending", ["safetensors", "bin", "fp16.safetensors", "fp16.bin"])
@pytest.mark.parametrize("old", [False, True])
def test_a_diffusers_folder_gives_bit_for_bit_the_model_of_the_compvis_file(ending, old, convert, tmp_path, ours):
    half = ending.startswith("fp16")
    for component, part in COMPONENTS.items():
        tensors = to_diffusers(tiny_compvis(), part, old)
        tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in tensors.items()}
        stem = "diffusion_pytorch_model"
        if part == "text":
            stem = "pytorch_model" if ending.endswith("bin") else "model"
        (tmp_path / component).mkdir()
        path = tmp_path / component / f"{stem}.{ending}"
        torch.save(tensors, path) if ending.endswith("bin") else save_file(tensors, path)
    code, text, _ = convert(tmp_path, "--out", tmp_path / "out.safetensors")
    assert code == 0
    expected = without_control(ours)
    assert_same(load_file(tmp_path / "out.safetensors"), {k: v.half() if half else v for k, v in expected.items()})
    assert text.count(f".{ending}  sha256") == 3
    assert ("diffusers_old" in text) == old


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_numbers_keep_their_type_or_take_the_one_asked_for(name, dtype, convert, inputs, tmp_path, ours):
    out = tmp_path / "out.safetensors"
    assert convert(inputs / "model.safetensors", "--out", out, "--dtype", name)[0] == 0
    assert_same(load_file(out), {key: value.to(dtype) for key, value in without_control(ours).items()})
    again = tmp_path / "again.safetensors"
    assert convert(out, "--out", again, preset=None)[0] == 0  # type kept
    assert {value.dtype for value in load_file(again).values()} == {dtype}


def test_the_moving_average_is_taken_with_ema(convert, tmp_path):
    model = tiny_compvis("vae", "text", "unet")
    ema = {f"model_ema.{k[6:].replace('.', '')}": v + 1 for k, v in model.items() if k.startswith("model.")}
    torch.save({"state_dict": model | ema}, tmp_path / "model.ckpt")
    _, text, _ = convert(tmp_path / "model.ckpt", "--out", tmp_path / "out.safetensors", "--ema")
    expected = convert_state_dict(model | ema, TINY, ema=True)
    assert_same(load_file(tmp_path / "out.safetensors"), expected)
    assert "unet (compvis, ema)" in text
    assert "ignored  686: unet: --ema takes its moving average" in text


def test_the_help_names_every_option_on_one_screen():
    command = [sys.executable, "-m", "weights_convert", "import", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    options = ("--out", "--ema", "--controlnet", "--text", "--vae", "--prediction", "--dtype", "--overwrite")
    assert all(option in done.stdout for option in options)
    assert len(done.stdout.splitlines()) < 40


def test_a_file_with_the_moving_average_alone_is_taken_with_ema_and_says_so_without(convert, tmp_path):
    model = tiny_compvis("vae", "text", "unet")
    ema = {f"model_ema.{k[6:].replace('.', '')}": v + 1 for k, v in model.items() if k.startswith("model.")}
    rest = {k: v for k, v in model.items() if not k.startswith("model.")}
    torch.save({"state_dict": rest | ema}, tmp_path / "model.ckpt")
    code, _, said = convert(tmp_path / "model.ckpt", "--out", tmp_path / "out.safetensors")
    assert (code, "holds the moving average alone. Add --ema" in said) == (2, True), said
    assert convert(tmp_path / "model.ckpt", "--out", tmp_path / "out.safetensors", "--ema")[0] == 0
    assert_same(load_file(tmp_path / "out.safetensors"), convert_state_dict(model | ema, TINY, ema=True))
