"""Samples in half precision: the bits of before weights were cast once, and what a GPU is given unless told."""

import pytest
import torch
from PIL import Image

from ldm_us.runtime import machine, processes
from ldm_us.synthesis import option_checks, options
from ldm_us.synthesis import weights as synthesis_weights
from ldm_us.synthesis.options import parse_options
from ldm_us.synthesis.recipe import settings_of


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU; what it would compute is not asked."""
    monkeypatch.setattr(processes, "device_kinds", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(option_checks, "check_device", lambda *_: None)
    monkeypatch.setattr(options, "half_precision", lambda device: "bf16")


def drawing(*words):
    sampling = parse_options(list(words)).recipe.sampling
    return sampling.exact, sampling.precision


def test_a_gpu_draws_whole_batches_in_half_precision_unless_exact_bits_are_asked_for(gpu):
    assert drawing() == (False, "bf16")
    assert drawing("--exact") == (True, "fp32")
    assert drawing("--precision", "tf32") == (False, "tf32")
    assert drawing("--exact", "--precision", "bf16") == (True, "bf16")
    assert drawing("--trajectory") == (True, "bf16"), "strips are of one sample"
    for device in ("cpu", "mps"):
        assert drawing("--device", device) == (True, "fp32")
        assert drawing("--device", device, "--fast") == (False, "fp32")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch, has_bf16, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or has_bf16)
    assert machine.half_precision("cuda") == expected
    assert asked == [{"including_emulation": False}]


@pytest.mark.parametrize(
    ("precision", "abilities", "noted"),
    [
        ("bf16", {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ("bf16", {"architecture": "x86_64", "avx512_bf16": True}, False),
        ("fp16", {"architecture": "x86_64", "avx512_bf16": True}, True),
        ("fp32", {"architecture": "x86_64"}, False),
        ("bf16", {"architecture": "unheard of"}, False),  # nothing is known, so nothing is said
    ],
)
def test_half_precision_that_a_cpu_emulates_is_noted_with_the_measured_factor(monkeypatch, precision, abilities, noted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    notes = machine.emulation_notes(precision, "cpu")
    assert [f"{machine.SLOWER[precision]}" in note for note in notes] == [True] * noted
    assert machine.emulation_notes(precision, "cuda:0") == []


def test_tf32_on_a_cpu_and_exact_beside_fast_are_refused(refused, tmp_path):
    said = refused(tmp_path / "out", "--precision", "tf32")
    assert said == "--precision tf32: a format of NVIDIA's GPUs, and this is cpu. Use fp32, or bf16."
    assert refused(tmp_path / "out", "--exact", "--fast").startswith("--exact draws one by one")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("precision", "asked"),
    [
        ("bf16", ["--class", "benign", "--explain"]),
        ("bf16", ["--mask", "masks", "--guidance", "2", "--fast"]),
        ("fp16", ["--mask", "masks", "--guidance", "2"]),
        ("bf16", ["--class", "normal", "--init", "image", "--n", "1"]),
    ],
)
def test_weights_cast_once_change_no_pixel_and_the_picture_says_its_precision(
    run, masks, tmp_path, monkeypatch, precision, asked
):
    Image.effect_noise((16, 16), 60).save(tmp_path / "image.png")
    files = {"masks": masks / "benign", "image": tmp_path / "image.png"}
    words = [str(files.get(word, word)) for word in asked]
    run(cast := tmp_path / "cast", *words, "--precision", precision)
    with monkeypatch.context() as patch:
        patch.setattr(synthesis_weights, "cast_weights", lambda *_: None)
        run(by_autocast := tmp_path / "by_autocast", *words, "--precision", precision)
    run(single := tmp_path / "single", *words)
    names = sorted(path.relative_to(cast) for path in cast.rglob("*.png"))
    assert names
    for name in names:
        assert (cast / name).read_bytes() == (by_autocast / name).read_bytes(), name
    assert any((cast / name).read_bytes() != (single / name).read_bytes() for name in names)
    with Image.open(next(cast.glob("0*.png"))) as picture:
        assert settings_of(picture.text)["sampling"]["precision"] == precision
