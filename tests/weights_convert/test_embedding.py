"""Textual inversions: every file that they come in becomes a learned prompt, and the rest is refused by name."""

import io
import re
from contextlib import redirect_stderr

import pytest
import torch
from safetensors.torch import save_file

from ldm_us.files.checkpoint import load_model
from ldm_us.files.lora_file import apply_lora, load_lora
from ldm_us.networks.clip import tokenize
from ldm_us.runtime.entry import run_command
from weights_convert.__main__ import main

VECTORS = 0.1 * torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def webui(vectors):
    """What AUTOMATIC1111's web UI saves."""
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "us", "step": 900}


FILES = {
    "webui.pt": (lambda path: torch.save(webui(VECTORS), path), "*"),
    "parameter.pt": (lambda path: torch.save(webui(torch.nn.Parameter(VECTORS)), path), "*"),
    "ldm.pt": (
        lambda path: torch.save(webui(VECTORS) | {"string_to_param": torch.nn.ParameterDict({"*": VECTORS})}, path),
        "*",
    ),
    "sks.bin": (lambda path: torch.save({"sks": VECTORS}, path), "sks"),
    "webui.safetensors": (lambda path: save_file({"emb_params": VECTORS}, path), "emb_params"),
    "learned_embeds.bin": (lambda path: torch.save({"<us>": VECTORS}, path), "<us>"),
    "learned_embeds.safetensors": (lambda path: save_file({"<us>": VECTORS}, path), "<us>"),
}


def call(*words):
    errors = io.StringIO()
    with redirect_stderr(errors):
        code = run_command(lambda: main([str(word) for word in words]))
    return code, errors.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_textual_inversion_becomes_a_learned_prompt(name, base, tmp_path):
    path, out = tmp_path / name, tmp_path / "prompt.safetensors"
    FILES[name][0](path)
    code, errors = call("import", "--embedding", path, "--base", base, "--out", out)
    assert code == 0, errors
    assert "before the words of every prompt, the empty or negative one of guidance included" in errors
    assert f"{FILES[name][1]} in a prompt does nothing" in errors
    lora = load_lora(out)
    assert list(lora.tensors) == ["text.prompt"]
    assert torch.equal(lora.tensors["text.prompt"], VECTORS)


def test_one_vector_without_an_axis_is_a_prompt_of_one_token(base, tmp_path):
    torch.save({"<us>": VECTORS[0]}, tmp_path / "one.bin")
    assert (
        call("import", "--embedding", tmp_path / "one.bin", "--base", base, "--out", tmp_path / "o.safetensors")[0] == 0
    )
    assert torch.equal(load_lora(tmp_path / "o.safetensors").tensors["text.prompt"], VECTORS[:1])


def test_the_states_are_those_of_a_vocabulary_with_the_vectors_as_words_before_the_prompt(base, tmp_path):
    """As other programs do it: rows of the token embedding are the vectors, and the prompt begins with these tokens."""
    save_file({"<us>": VECTORS}, tmp_path / "us.safetensors")
    call("import", "--embedding", tmp_path / "us.safetensors", "--base", base, "--out", tmp_path / "o.safetensors")
    ours, theirs = load_model(base), load_model(base)
    apply_lora(ours, tmp_path / "o.safetensors")
    tokens, rows = tokenize("a cyst in a breast"), torch.tensor([[7, 8]])  # rows that the prompt does not use
    assert not {7, 8} & set(tokens[0].tolist())
    theirs.text.token_embedding.weight.data[rows[0]] = VECTORS
    expected = theirs.text(torch.cat([tokens[:, :1], rows, tokens[:, 1:-2]], dim=1))
    torch.testing.assert_close(ours.text(tokens), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"clip_l": (2, 8), "clip_g": (2, 16)}, "a textual inversion of a Stable Diffusion XL model"),
        ({"<us>": (2, 1024)}, r"float32 \[2, 1024\], as in a Stable Diffusion 2.x model. micro needs numbers \[N, 8\]"),
        ({"<us>": (2, 9)}, r"<us> is float32 \[2, 9\]. micro needs numbers \[N, 8\]"),
        ({"<us>": (0, 8)}, r"<us> is float32 \[0, 8\]"),
        ({"<us>": (90, 8)}, "90 prompt tokens: a prompt is 77 tokens long"),
        ({"<a>": (2, 8), "<b>": (2, 8)}, r"2 tensors \(<a>, <b>\), not the vectors of one word"),
    ],
)
def test_what_is_no_textual_inversion_for_this_model_is_refused(tensors, sentence, base, tmp_path):
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "us.safetensors")
    words = ("import", "--embedding", tmp_path / "us.safetensors", "--base", base, "--out", tmp_path / "o.safetensors")
    code, errors = call(*words)
    assert code == 2
    assert re.search(sentence, errors)
    assert not (tmp_path / "o.safetensors").exists()


def test_one_given_as_something_else_is_named_with_the_option_that_takes_it(base, tmp_path):
    for name, (write, word) in FILES.items():
        if word == "sks":
            continue  # told by SD 1.5's width: test_detect.py
        write(path := tmp_path / name)
        out = ("--out", tmp_path / "o.safetensors")
        for words in (("audit", path), ("import", path, *out), ("import", "--lora", path, "--base", base, *out)):
            code, errors = call(*words)
            assert code == 2
            assert "a textual inversion" in errors
            assert "import --embedding" in errors


def test_a_folder_is_taken_by_the_name_of_its_file(base, tmp_path):
    save_file({"<us>": VECTORS}, tmp_path / "learned_embeds.safetensors")
    out = tmp_path / "o.safetensors"
    assert call("import", "--embedding", tmp_path, "--base", base, "--out", out)[0] == 0
    assert torch.equal(load_lora(out).tensors["text.prompt"], VECTORS)
    (tmp_path / "none").mkdir()
    code, errors = call("import", "--embedding", tmp_path / "none", "--base", base, "--out", out, "--overwrite")
    assert code == 2
    assert "no learned_embeds.safetensors in this folder" in errors
