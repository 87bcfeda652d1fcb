"""Before a random text encoder steers anything, its states must differ between prompts."""

import pytest
import torch

from ldm_us.config import US128
from ldm_us.networks.clip import END_OF_TEXT, TextEncoder, tokenize
from ldm_us.training.batches import stream_generator
from ldm_us.training.losses import after_end, contrastive_loss, warm_up_text

PROMPTS = ["", *(f"Ultrasound image of a {label} breast" for label in ("benign", "malignant", "normal"))]


@pytest.fixture
def tokens():
    return tokenize(PROMPTS)


def encoder():
    torch.manual_seed(0)
    return TextEncoder(US128.text)


def closest(text, tokens):
    """Largest cosine similarity between the states of two prompts at the last position."""
    with torch.no_grad():
        states = torch.nn.functional.normalize(text(tokens)[:, -1], dim=-1)
    return (states @ states.T - 2 * torch.eye(len(states))).max().item()


def test_random_weights_confuse_the_classes_and_the_warm_up_parts_them(tokens):
    text = encoder()
    assert closest(text, tokens) > 0.95
    warm_up_text(text, tokens, 30, seed=0)
    assert closest(text, tokens) < 0.5


def test_the_same_seed_gives_the_same_weights(tokens):
    first, second = encoder(), encoder()
    for text in (first, second):
        warm_up_text(text, tokens, 2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in first.parameters())


def test_positions_lie_from_the_end_of_text_on(tokens):
    generator = stream_generator(0, 9)
    for _ in range(50):
        positions = after_end(tokens, generator)
        assert (tokens[torch.arange(len(tokens)), positions] == END_OF_TEXT).all()


def test_the_loss_is_zero_for_states_that_lie_apart_and_log_p_for_equal_ones(tokens):
    apart = torch.eye(len(tokens))[:, None].expand(-1, tokens.shape[1], -1)
    assert contrastive_loss(apart, tokens, stream_generator(0)).item() < 1e-4
    equal = torch.ones(len(tokens), tokens.shape[1], 8)
    assert contrastive_loss(equal, tokens, stream_generator(0)).item() == pytest.approx(torch.tensor(4.0).log().item())


def test_a_run_with_a_warm_up_has_other_text_weights_and_says_so(run, tmp_path):
    plain = run("unet", tmp_path / "plain", "--train-text")
    warmed = run("unet", tmp_path / "warmed", "--train-text", "--text-warmup", 3)
    name = "text.norm_out.weight"
    assert not torch.equal(plain.weights[name], warmed.weights[name])
    assert '"text_warmup": 3' in (tmp_path / "warmed" / "config.json").read_text()


def test_a_warm_up_without_training_the_text_is_refused(refused, tmp_path):
    assert "--train-text" in refused("unet", tmp_path / "out", "--text-warmup", 3)
