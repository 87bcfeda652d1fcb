"""Weights of words and long prompts: what is read, what it does to text states, and that a picture keeps it."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sample
from ldm_us.config import TextConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.clip import END_OF_TEXT, START_OF_TEXT, tokenize
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.prompt_weights import parse_weights, plain_text, token_weights, weigh

LONG = "Ultrasound image of a malignant breast, " + ", ".join(f"word{i} and more" for i in range(22))


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a breast", [("a breast", 1.0)]),
        ("", []),
        ("a (malignant:1.3) breast", [("a ", 1.0), ("malignant", 1.3), (" breast", 1.0)]),
        ("(a)", [("a", 1.1)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("([a])", [("a", 1 / 1.1 * 1.1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("[open", [("open", 1 / 1.1)]),
        ("not open) nor]", [("not open) nor]", 1.0)]),
        ("no weight: here:1.3)", [("no weight: here:1.3)", 1.0)]),
        ("(a:0)", [("a", 0.0)]),
        ("(a: -0.5 )", [("a", -0.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    ],
)
def test_prompts_are_read_as_a1111_reads_them(prompt, parts):
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


def test_the_example_in_a1111s_source_has_its_weights():
    """The docstring of parse_prompt_attention in modules/prompt_parser.py states these numbers."""
    found = parse_weights("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")
    weights = {"a ": 1.0, "house": 1.573, " ": 1.1, "on": 1.0, " a ": 1.1, "hill": 0.55, ", sun, ": 1.1, "sky": 1.4641}
    assert dict(found) == pytest.approx(weights | {".": 1.1})


TREES = st.recursive(
    st.sampled_from(["a", "bc ", " d", "(", "\\", ": "]),
    lambda inner: st.tuples(st.sampled_from(["(", "[", "number", ""]), st.lists(inner, max_size=3)),
    max_leaves=8,
)


def written(tree):
    """A tree of texts and brackets as a prompt."""
    if isinstance(tree, str):
        return "".join(f"\\{letter}" if letter in "()[]\\" else letter for letter in tree)
    kind, inner = tree
    text = "".join(map(written, inner))
    return {"(": f"({text})", "[": f"[{text}]", "number": f"({text}:0.7)", "": text}[kind]


def letters(tree, weight=1.0):
    """Every letter of a tree with its weight, by walking down."""
    if isinstance(tree, str):
        return [(letter, weight) for letter in tree]
    kind, inner = tree
    weight = weight * {"(": 1.1, "[": 1 / 1.1, "number": 0.7, "": 1.0}[kind]
    return [pair for one in inner for pair in letters(one, weight)]


@given(TREES)
def test_nested_brackets_multiply_by_an_independent_walk_of_the_tree(tree):
    found = [(letter, weight) for text, weight in parse_weights(written(tree)) for letter in text]
    expected = letters(tree)
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def test_a_weight_that_is_no_number_is_refused_in_one_sentence(refused, tmp_path):
    for prompt in ("(a:1.2.3)", "(a:1000)"):
        said = refused(tmp_path / "out", "--prompt", prompt, "--prompt-weights")
        assert "is no weight. Use a number such as 1.3." in said
    assert "use 1 to 8 chunks" in refused(tmp_path / "out", "--long-prompts", 9)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", ["a (malignant:1.3) breast", "(mal)ignant", "(a), [b]", "(malignant:2)", "a (b)c"])
def test_the_tokens_of_the_plain_text_are_those_of_the_parts_one_after_the_other(prompt):
    text = TextConfig()
    parts = [tokenize(part)[0] for part, _ in parse_weights(prompt)]
    words = torch.cat([tokens[1 : int((tokens != END_OF_TEXT).sum())] for tokens in parts])
    whole = tokenize(plain_text(prompt))[0]
    assert whole[: len(words) + 2].tolist() == [START_OF_TEXT, *words.tolist(), END_OF_TEXT]
    weights = token_weights(prompt, text)
    assert weights.shape == (77,)
    assert (weights[[0, *range(1 + len(words), 77)]] == 1).all()


@pytest.mark.parametrize("chunks", [1, 2])
def test_states_are_multiplied_and_every_chunk_keeps_its_mean_by_a_loop_in_float64(chunks):
    config = TextConfig(length=10, width=4, chunks=chunks)
    prompts = ["a (malignant:1.7) [breast] with (words) " * 2, "a breast"]
    states = torch.randn(2, 10 * chunks, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.stack([token_weights(prompt, config) for prompt in prompts])
    found = weigh(states, weights, 10)
    for b in range(2):
        for first in range(0, 10 * chunks, 10):
            z = states[b, first : first + 10].double()
            weighted = torch.stack([z[i] * float(weights[b, first + i]) for i in range(10)])
            expected = weighted * (z.sum() / weighted.sum())
            assert torch.allclose(found[b, first : first + 10].double(), expected, rtol=1e-4, atol=1e-6)
            assert found[b, first : first + 10].mean() == pytest.approx(float(z.mean()), abs=1e-6)
    assert torch.equal(found[1], states[1])  # without weights not a bit changes
    assert not torch.equal(found[0], states[0])


def test_a_long_prompt_is_read_in_chunks_of_75_with_start_and_end_each():
    one = tokenize(LONG, 500)[0]
    words = one[1 : int((one != END_OF_TEXT).sum())].tolist()
    assert len(words) > 75
    first, second, third = tokenize(LONG, 77, 3)[0].split(77)
    assert first.tolist() == [START_OF_TEXT, *words[:75], END_OF_TEXT]
    rest = [START_OF_TEXT, *words[75:], END_OF_TEXT]
    assert second.tolist() == rest + [END_OF_TEXT] * (77 - len(rest))
    assert third.tolist() == [START_OF_TEXT] + [END_OF_TEXT] * 76
    assert torch.equal(tokenize(LONG)[0], first)


def test_chunks_are_encoded_each_by_itself(micro):
    torch.manual_seed(0)
    model = LatentDiffusion(micro).eval().requires_grad_(False)
    plain = model.encode_prompts(["a breast", LONG])
    model.set_chunks(2)
    states = model.encode_prompts(["a breast", LONG])
    assert states.shape == (2, 154, micro.text.width)
    alone = [model.text(tokens[None])[0] for tokens in tokenize(LONG, 77, 2)[0].split(77)]
    assert torch.allclose(states[1], torch.cat(alone), atol=1e-6)
    assert torch.allclose(states[:, :77], plain, atol=1e-6)
    model.set_chunks(1)
    assert torch.equal(model.encode_prompts(["a breast", LONG]), plain)
    model.add_prompt_tokens(2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="2 prompt tokens: they go with prompts of one chunk"):
        model.set_chunks(2)


def picture_of(out):
    (path,) = out.glob("*seed0.png")
    with Image.open(path) as picture:
        return path, list(picture.getdata()), picture.text


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (("--prompt-weights",), {"prompt_weights": True}),
        (("--long-prompts", 2), {"long_prompts": 2}),
        (("--prompt-weights", "--long-prompts", 2, "--fast"), {"prompt_weights": True, "long_prompts": 2}),
    ],
)
def test_a_picture_says_how_its_prompt_was_read_and_is_drawn_again(
    run, weights, refused, tmp_path, capsys, options, saved
):
    asked = ("--prompt", "a (malignant:1.5) breast", "--n", 1, "--negative-prompt", "[b]", "--guidance", 2)
    run(tmp_path / "plain", *asked)
    run(tmp_path / "read", *asked, *options)
    path, pixels, text = picture_of(tmp_path / "read")
    settings = json.loads(text["settings"])
    assert {name: settings[name] for name in ("prompt_weights", "long_prompts") if name in settings} == saved
    assert text["prompt"] == "a (malignant:1.5) breast"
    _, plain, plain_text_fields = picture_of(tmp_path / "plain")
    assert not {"prompt_weights", "long_prompts"} & json.loads(plain_text_fields["settings"]).keys()
    assert pixels != plain
    run(tmp_path / "read", *asked, *options)  # goes on: all is there
    assert "begun by another command" in refused(tmp_path / "read", *asked)
    assert run_command(lambda: sample.main(["--verify", str(path), "--weights", str(weights)])) == 0


def test_without_weights_in_a_prompt_reading_them_changes_no_bit(run, tmp_path):
    run(tmp_path / "plain", "--class", "benign", "--n", 1)
    run(tmp_path / "read", "--class", "benign", "--n", 1, "--prompt-weights")
    assert picture_of(tmp_path / "plain")[1] == picture_of(tmp_path / "read")[1]


def test_a_note_says_where_even_the_chunks_end(run, tmp_path, capsys):
    run(tmp_path / "a", "--prompt", LONG, "--n", 1)
    assert "the model reads 77" in capsys.readouterr().err
    run(tmp_path / "b", "--prompt", f"({LONG}:1.2)", "--n", 1, "--long-prompts", 2, "--prompt-weights")
    assert "the model reads" not in capsys.readouterr().err
    run(tmp_path / "c", "--prompt", LONG * 2, "--n", 1, "--long-prompts", 2)
    assert "the model reads 152" in capsys.readouterr().err


def test_weights_reach_every_way_to_begin_from_an_image(weights, run, masks, tmp_path):
    init = masks / "benign/benign (1).png"
    for way in (("--strength", 0.5), ("--invert", "--source-prompt", "a (b:1.2)")):
        asked = ("--init", init, "--n", 1, "--guidance", 2, *way)
        found = []
        for name, prompt in (("plain", "a breast"), ("weighted", "a (breast:1.8)")):
            run(tmp_path / f"{way[0]}{name}", "--prompt", prompt, *asked, "--prompt-weights")
            found.append(picture_of(tmp_path / f"{way[0]}{name}")[1])
        assert found[0] != found[1]
