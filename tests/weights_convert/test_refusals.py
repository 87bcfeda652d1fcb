"""What `python -m weights_convert import` refuses: one sentence, exit code 2, and nothing written."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.original import tiny_compvis


def cut(path, out, share=0.6):
    content = path.read_bytes()
    out.write_bytes(content[: int(share * len(content))])
    return out


def saved(tensors, out):
    save_file(tensors, out)
    return out


BAD = {  # what is wrong -> SRC, made in a folder from the inputs, and what the sentence says
    "missing file": (lambda folder, inputs: folder / "nothing.ckpt", "no such file or folder"),
    "empty file": (lambda folder, inputs: saved({}, folder / "x.safetensors"), "none at all"),
    "cut .safetensors": (
        lambda folder, inputs: cut(inputs / "model.safetensors", folder / "x.safetensors"),
        "cut short",
    ),
    "cut .pth": (lambda folder, inputs: cut(inputs / "control.pth", folder / "x.pth"), "cut short"),
    "other tensors": (lambda folder, inputs: saved({"fc": torch.ones(2)}, folder / "x.safetensors"), "no known model"),
    "LoRA": (lambda folder, inputs: saved({"a.lora_up.weight": torch.ones(2)}, folder / "x.safetensors"), "is a LoRA"),
    "empty folder": (lambda folder, inputs: folder, "no weights in this folder"),
    "only a ControlNet": (lambda folder, inputs: inputs / "control.pth", "but no vae and no text and no unet"),
    "only a text encoder": (lambda folder, inputs: inputs / "clip.safetensors", "holds text, but no vae and no unet"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_no_file(what, convert, inputs, tmp_path):
    make, sentence = BAD[what]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = make(tmp_path / "in", inputs)
    code, text, error = convert(source, "--out", tmp_path / "out" / "out.safetensors")
    assert (code, text) == (2, "")
    assert error.startswith(f"error: {source}")
    assert sentence in error
    assert error.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--controlnet", "clip.safetensors"), "clip.safetensors: holds no controlnet. Give a file that does"),
        (("--text", "control.pth"), "control.pth: holds no text. Give a file that does with --text"),
        (("--ema",), "holds no moving average"),
        (("--preset", "sd15"), "misshaped"),
        (("--preset", "us128"), "does not hold the tensors of us128"),
    ],
)
def test_options_that_do_not_fit_the_files_are_refused(options, sentence, convert, inputs, tmp_path):
    options = [inputs / option if "." in option else option for option in options]
    out = tmp_path / "out.safetensors"
    code, _, error = convert("--preset", "tiny", inputs / "model.safetensors", *options, "--out", out, preset=None)
    assert code == 2
    assert sentence in error
    assert list(tmp_path.iterdir()) == []


def test_the_place_for_the_result_is_checked_before_any_work(convert, inputs, tmp_path):
    source, there = inputs / "model.safetensors", tmp_path / "there.safetensors"
    there.write_text("mine", encoding="ascii")
    for out, sentence in (
        (there, "the file exists. Add --overwrite"),
        (tmp_path / "no" / "out.safetensors", "there is no folder"),
        (tmp_path, "--out is a folder"),
        (tmp_path / "out.ckpt", "the result is a .safetensors file"),
    ):
        code, _, error = convert(source, "--out", out)
        assert code == 2
        assert f"error: {out}: {sentence}" in error
    assert there.read_text(encoding="ascii") == "mine"
    assert convert(source, "--out", there, "--overwrite")[0] == 0
    assert os.listdir(tmp_path) == ["there.safetensors"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(convert, inputs, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    out.write_text("mine", encoding="ascii")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    code, _, error = convert(inputs / "model.safetensors", "--out", out, "--overwrite")
    assert code == 2
    assert "the disk is full; nothing was written. Free space" in error
    assert out.read_text(encoding="ascii") == "mine"
    assert os.listdir(tmp_path) == ["out.safetensors"]


@pytest.mark.parametrize("dtype", [(), ("--dtype", "fp16")])
def test_values_that_are_no_numbers_are_refused_and_nothing_is_written(convert, tmp_path, dtype):
    model = tiny_compvis("vae", "text", "unet")
    model["model.diffusion_model.out.2.bias"] = torch.tensor([0.0, float("nan"), 0.0, float("inf")])
    save_file(model, tmp_path / "model.safetensors")
    code, _, error = convert(tmp_path / "model.safetensors", "--out", tmp_path / "out.safetensors", *dtype)
    assert code == 2
    assert "model.diffusion_model.out.2.bias: 2 of its 4 values are NaN or infinite" in error
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_numbers_that_fp16_cannot_hold_are_refused_and_nothing_is_written(convert, tmp_path):
    model = tiny_compvis("vae", "text", "unet")
    model["model.diffusion_model.out.2.bias"] = torch.tensor([0.0, 1e5, 0.0, 0.0])
    save_file(model, tmp_path / "model.safetensors")
    code, _, error = convert(tmp_path / "model.safetensors", "--out", tmp_path / "out.safetensors", "--dtype", "fp16")
    assert code == 2
    assert "model.diffusion_model.out.2.bias has numbers too large for" in error
    assert os.listdir(tmp_path) == ["model.safetensors"]
