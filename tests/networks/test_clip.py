"""Prompts to tokens as Stable Diffusion 1.5 was trained with them, and the causal text encoder."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_us.config import SD15, US128, TextConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.networks.clip import (
    COMMON_TOKENS,
    END_OF_TEXT,
    QuickGELU,
    TextEncoder,
    _open_clip_tokenizer,
    kept_text,
    tokenize,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tiny.npz")
START = 49406
PROMPTS = ["", "Ultrasound image of a malignant breast", "!", "wow!~ #!/bin", "word " * 200]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = TextConfig(vocabulary=100, length=12, width=16, heads=4, layers=2, mlp_width=32)
    return TextEncoder(config).eval().requires_grad_(False)


def test_tokens_equal_those_of_the_original_tokenizer():
    assert tokenize(["", "Ultrasound image of a malignant breast"]).tolist() == GOLDEN["clip.tokens"].tolist()


def test_the_tokenizer_is_read_without_importing_open_clip_or_torchvision():
    code = "import sys; from ldm_us.networks.clip import tokenize; tokenize('a breast'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"open_clip", "torchvision", "timm"} & set(loaded)


def test_a_missing_open_clip_is_one_sentence_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("ldm_us.networks.clip.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no module named open_clip.*`pip install open-clip-torch`"):
        _open_clip_tokenizer.__wrapped__()


def test_every_prompt_is_77_tokens_from_start_to_end_of_text_and_padded_with_it():
    tokens = tokenize(PROMPTS)
    assert tokens.shape == (5, 77)
    assert tokens.dtype == torch.int64
    for row in tokens.tolist():
        end = row.index(END_OF_TEXT)
        assert row[0] == START
        assert START not in row[1:]
        assert row[end:] == [END_OF_TEXT] * (77 - end)


@pytest.mark.parametrize("length", [77, 20])
def test_the_kept_text_of_a_prompt_has_its_tokens_and_a_prompt_is_kept_whole_up_to_the_length(length):
    """The 75th word is the last to fit into 77 tokens, with start and end of text around it."""
    for prompt in ("dark round mass " * 40, "word " * (length - 2), "word " * (length - 1), "", "Breast,  in CAPITALS"):
        count, text = kept_text(prompt, length)
        assert torch.equal(tokenize(text, length), tokenize(prompt, length))
        assert count == int((tokenize(prompt, 500) != END_OF_TEXT).sum()) + 1
        assert count > length or text == " ".join(prompt.lower().replace(",", " ,").split())
    assert [kept_text("word " * n)[0] for n in (75, 76)] == [77, 78]
    assert kept_text("word " * 76)[1] == " ".join(["word"] * 75)


def test_an_exclamation_mark_survives_though_its_token_is_the_tokenizers_padding():
    alone, inside, _ = tokenize(["!", "wow!~ #!/bin", ""]).tolist()
    assert alone[1] == 256, "with the end of a word"
    assert inside[1 : inside.index(END_OF_TEXT)].count(0) == 2, "within a word"


def test_a_prompt_that_is_too_long_is_cut_and_keeps_its_end_of_text():
    long, shorter = tokenize(["word " * 200, "word " * 75]).tolist()
    assert long[0] == START
    assert long[-1] == END_OF_TEXT
    assert long.count(END_OF_TEXT) == 1
    assert long == shorter


def test_one_prompt_may_be_given_without_a_list_and_at_another_length():
    assert torch.equal(tokenize("a breast"), tokenize(["a breast"]))
    assert torch.equal(tokenize("a breast", length=8), tokenize("a breast")[:, :8])


def test_states_are_one_a_token(encoder):
    assert encoder(torch.zeros(3, 12, dtype=torch.int64)).shape == (3, 12, 16)
    assert encoder(torch.zeros(3, 5, dtype=torch.int64)).shape == (3, 5, 16)


@pytest.mark.parametrize("k", [0, 1, 7, 11])
def test_changing_token_k_changes_no_state_before_k_and_every_state_from_k_on(encoder, k):
    tokens = torch.arange(12)[None]
    changed = tokens.clone()
    changed[0, k] = 50
    difference = (encoder(changed) - encoder(tokens)).abs().amax(dim=(0, 2))
    assert (difference[:k] < 1e-6).all()
    assert (difference[k:] > 1e-4).all()


def test_the_same_token_has_another_state_at_another_place(encoder):
    states = encoder(torch.full((1, 12), 7))
    assert float((states[0, 1:] - states[0, :-1]).abs().amax(dim=1).min()) > 1e-4


def test_states_are_normalised_last(encoder):
    states = encoder(torch.arange(12)[None])
    torch.testing.assert_close(states.mean(dim=-1), torch.zeros(1, 12), rtol=0, atol=1e-5)
    torch.testing.assert_close(states.var(dim=-1, unbiased=False), torch.ones(1, 12), rtol=1e-3, atol=0)


def test_at_the_start_a_class_word_is_seen_at_every_later_position():
    torch.manual_seed(0)
    states = TextEncoder(US128.text)(
        tokenize(["Ultrasound image of a benign breast", "Ultrasound image of a malignant breast"])
    )
    padding = states[:, 20:]
    assert (padding[0] - padding[1]).norm() / padding[0].norm() > 0.1  # 0.01 with embeddings of variance 1


def test_quick_gelu_is_not_the_exact_gelu():
    features = torch.linspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(features), features / (1 + torch.exp(-1.702 * features)))
    assert float((QuickGELU()(features) - torch.nn.functional.gelu(features)).abs().max()) > 0.01


def test_sd15_has_as_many_parameters_and_tensors_as_the_original():
    with torch.device("meta"):
        text = TextEncoder(SD15.text)
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    assert len(text.state_dict()) == 196


def with_prompt(encoder, vectors):
    """A copy of a text encoder, with learned vectors (N, d)."""
    prompted = TextEncoder(dataclasses.replace(encoder.config, prompt_tokens=len(vectors))).requires_grad_(False)
    prompted.load_state_dict(encoder.state_dict() | {"prompt": vectors})
    return prompted.eval()


def test_without_prompt_tokens_there_is_no_parameter_and_no_output_bit_changes(encoder):
    tokens = torch.arange(12)[None]
    assert encoder.prompt is None
    assert not [name for name in encoder.state_dict() if "prompt" in name]
    states = encoder.token_embedding(tokens) + encoder.position_embedding.weight[:12]
    for block in encoder.blocks:
        states = block(states)
    assert torch.equal(encoder(tokens), encoder.norm_out(states))


def test_learned_vectors_equal_to_embeddings_of_words_are_those_words(encoder):
    """VPT Eq. 4: the learned vectors stand after the start of text and before the words, each at its position."""
    words = [5, 6, 7]
    prompted = with_prompt(encoder, encoder.token_embedding.weight[words])
    tokens = torch.tensor([[98, 20, 21, *[99] * 9], [98, 30, 31, 32, 33, *[99] * 7]])
    written = torch.tensor([[98, *words, 20, 21, *[99] * 6], [98, *words, 30, 31, 32, 33, *[99] * 4]])
    assert torch.equal(prompted(tokens), encoder(written))


@pytest.mark.parametrize("words", [0, 1, 71, 72, 73, 75, 76, 200])
def test_behind_a_learned_prompt_a_long_prompt_is_cut_and_keeps_its_end_of_text(words):
    """The sequence stays 77 long: the same as tokenizing at 77 - N, whatever the length of the prompt."""
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(width=8, heads=2, layers=1, mlp_width=16)).requires_grad_(False)
    learned = torch.tensor([1000, 1001, 1002])
    prompted = with_prompt(encoder, encoder.token_embedding.weight[learned])
    tokens, shorter = (tokenize("word " * words, length) for length in (77, 74))
    written = torch.cat([shorter[:, :1], learned[None], shorter[:, 1:]], dim=1)
    assert written[0, -1] == END_OF_TEXT
    assert torch.equal(prompted(tokens), encoder(written))
    assert prompted(tokens).shape == (1, 77, 8)


def test_only_the_learned_prompt_gets_a_gradient_where_the_rest_is_frozen(encoder):
    prompted = with_prompt(encoder, torch.zeros(3, 16))
    prompted.prompt.requires_grad_(True)
    prompted(torch.arange(12)[None])[0, -1].square().sum().backward()
    assert [name for name, p in prompted.named_parameters() if p.grad is not None] == ["prompt"]
    assert (prompted.prompt.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize("count", [-1, 10, 12])
def test_more_prompt_tokens_than_leave_room_for_a_word_are_refused(encoder, count):
    with pytest.raises(ValueError, match=rf"{count} prompt tokens: a prompt is 12 tokens long.* Use 0 to 9"):
        TextEncoder(dataclasses.replace(encoder.config, prompt_tokens=count))


@pytest.fixture
def model(micro):
    torch.manual_seed(0)
    return LatentDiffusion(micro).eval()


def test_added_prompt_tokens_are_different_common_words_drawn_by_the_generator(model):
    state = torch.get_rng_state()
    prompt = model.add_prompt_tokens(20, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state), "no global randomness"
    distance = torch.cdist(prompt.detach(), model.text.token_embedding.weight.detach())
    nearest = distance.argmin(dim=1)
    assert distance.amin(dim=1).max() < 1e-4
    assert all(token in COMMON_TOKENS for token in nearest.tolist())
    assert len(nearest.unique()) == 20
    assert prompt.requires_grad
    assert prompt.data_ptr() != model.text.token_embedding.weight.data_ptr()


def test_the_same_generator_gives_the_same_prompt_and_another_another(micro):
    prompts = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        prompts.append(LatentDiffusion(micro).add_prompt_tokens(4, torch.Generator().manual_seed(seed)))
    assert torch.equal(prompts[0], prompts[1])
    assert not torch.equal(prompts[0], prompts[2])


def test_a_model_with_prompt_tokens_says_so_in_its_config_and_comes_back_from_its_file(model, tmp_path):
    model.add_prompt_tokens(4, torch.Generator().manual_seed(1))
    assert model.config.text.prompt_tokens == model.text.config.prompt_tokens == 4
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded.text.prompt, model.text.prompt)
    assert torch.equal(loaded.encode_prompts(["a breast"]), model.encode_prompts(["a breast"]))
    assert loaded.encode_prompts([""]).shape == (1, 77, 8)


@pytest.mark.parametrize(("count", "sentence"), [(0, "use 1 or more"), (-1, "use 1 or more"), (75, "Use 0 to 74")])
def test_prompt_tokens_that_cannot_be_added_are_refused(model, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.add_prompt_tokens(count, torch.Generator())


def test_a_second_learned_prompt_is_refused(model):
    model.add_prompt_tokens(2, torch.Generator())
    with pytest.raises(ValueError, match="has 2 prompt tokens already"):
        model.add_prompt_tokens(2, torch.Generator())
