"""bench/parity.py as far as it goes without diffusers: planted differences are found, and the exit code says so."""

import math
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from bench import parity
from bench.parity_networks import Pair, compare_controlnet, compare_text, compare_unet, compare_vae
from bench.parity_table import BAR, compare, compare_calls, first_above, verdict
from ldm_us.files.checkpoint import load_model
from ldm_us.networks.clip import tokenize
from ldm_us.networks.unet import Control
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.runtime.entry import run_command
from tests.conftest import MICRO

ONES = torch.ones(2, 8)


def planted(size):
    """Ones, but for one element that is `size` too large."""
    changed = ONES.clone()
    changed[1, 3] += size
    return changed


def test_the_relative_difference_is_that_of_the_norms_and_the_largest_is_found():
    row = compare("what", planted(0.5), ONES)
    assert row.shape == (2, 8)
    assert row.largest == 0.5
    assert row.relative == pytest.approx(0.5 / math.sqrt(16))


def test_a_difference_is_ok_up_to_the_bar_and_not_above():
    assert compare("below", planted(0.99 * 4 * BAR), ONES).ok
    assert not compare("above", planted(1.01 * 4 * BAR), ONES).ok


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (planted(math.nan), ONES),
        (ONES, planted(math.nan)),
        (planted(math.inf), planted(math.inf)),
        (ONES, ONES[:1]),  # would broadcast
        (ONES, torch.zeros(2, 8)),
    ],
    ids=["nan", "their nan", "inf", "another shape", "their zeros"],
)
def test_what_cannot_be_compared_is_never_ok(ours, theirs):
    assert not compare("what", ours, theirs).ok


def test_zeros_agree_with_zeros():
    assert compare("what", 0 * ONES, 0 * ONES).ok


def test_the_verdict_names_the_first_difference_and_the_largest():
    sizes = {"first": 0.0, "second": 0.1, "third": 0.9, "fourth": 0.0}
    rows = [compare(what, planted(size), ONES) for what, size in sizes.items()]
    first, largest = verdict(rows).splitlines()
    assert "second, 2 x 8 (relative 2.5e-02)" in first
    assert "third" in largest
    assert verdict(rows[:1]).startswith("first difference above 0.0001: none\n")


def test_calls_are_timed_and_a_row_shows_both_times_and_whether_it_is_ok():
    assert " | yes | " in str(compare_calls("what", lambda: ONES, lambda: ONES))
    row = compare_calls("what", lambda: ONES, lambda: planted(1))
    assert row.seconds is not None
    assert " | NO  | " in str(row)
    assert len({len(str(each)) for each in (row, compare("other", ONES, ONES))}) == 1


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory):
    return parity.fill_model(MICRO, tmp_path_factory.mktemp("parity") / "filled.safetensors")


def stand_in(model):
    """Our networks behind the calls of diffusers' and transformers'."""

    def encode(x):
        moments = model.vae.moments(x)
        posterior = posterior_from_moments(moments, scale=1.0)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=moments, mean=posterior.mean, std=posterior.std))

    def unet(z_t, t, encoder_hidden_states, down_block_additional_residuals=(), mid_block_additional_residual=None):
        skips, middle = down_block_additional_residuals, mid_block_additional_residual
        control = None if middle is None else Control(skips, middle)
        return SimpleNamespace(sample=model.unet(z_t, t, encoder_hidden_states, control))

    downs, ups = list(model.vae.encoder.downs), list(model.vae.decoder.ups)
    unet.conv_in, unet.down_blocks = model.unet.encoder, []  # the encoder gives all feature maps at once
    unet.mid_block, unet.up_blocks = model.unet.middle, list(model.unet.decoder.ups)
    vae = SimpleNamespace(
        encoder=SimpleNamespace(down_blocks=downs, mid_block=model.vae.encoder.middle),
        decoder=SimpleNamespace(up_blocks=ups, mid_block=model.vae.decoder.middle),
        config=SimpleNamespace(scaling_factor=model.vae.scale),
        encode=encode,
        decode=lambda z: SimpleNamespace(sample=model.vae.decode_unscaled(z)),
    )
    return SimpleNamespace(
        tokenizer=lambda prompts, max_length, **_: SimpleNamespace(input_ids=tokenize(prompts, max_length)),
        text_encoder=lambda tokens: SimpleNamespace(last_hidden_state=model.text(tokens)),
        vae=vae,
        unet=unet,
        controlnet=lambda z_t, t, context, hint, return_dict: model.controlnet(z_t, t, context, hint),
    )


@pytest.fixture(scope="module")
def two(filled_file):
    """A pair, and the model in the reference's place: the same file, read again."""
    ours, other = load_model(filled_file), load_model(filled_file)
    theirs = stand_in(other)
    return Pair(ours, theirs, theirs.controlnet), other


def network_rows(pair):
    parts = (compare_text, compare_vae, compare_unet, compare_controlnet)
    with torch.no_grad():
        yield from chain.from_iterable(part(pair) for part in parts)


def test_filled_weights_are_the_same_every_time_and_nowhere_zero_so_that_every_residual_counts(filled_file, tmp_path):
    again = parity.fill_model(MICRO, tmp_path / "again.safetensors")
    assert again.read_bytes() == filled_file.read_bytes()
    assert all(value.count_nonzero() > 0.9 * value.numel() for value in load_model(filled_file).parameters())


def test_the_hint_counts_with_filled_weights(two):
    pair, _ = two
    hint = torch.zeros(1, 3, MICRO.image_size, MICRO.image_size)
    features, of_inverse = (pair.ours.controlnet.hint_network(each) for each in (hint, 1 - hint))
    assert compare("hint features", of_inverse, features).relative > 0.1


def test_filled_weights_can_be_exported(filled_file, tmp_path, export):
    assert export(filled_file, "--format", "diffusers", "--out", tmp_path / "folder")[0] == 0


def test_networks_of_the_same_weights_agree_and_every_residual_has_its_row(two):
    rows = list(network_rows(two[0]))
    assert first_above(rows) is None
    assert sum(row.what.startswith("ControlNet residual") for row in rows) == 2 * 5  # at two sizes


@pytest.mark.parametrize(
    ("weight", "expected"),
    {
        "text.norm_out.bias": "text states",
        "vae.quant_conv.bias": "VAE moments",
        "vae.encoder.middle.res_2.conv_2.bias": "VAE moments: middle",
        "vae.decoder.conv_out.bias": "VAE decode",
        "unet.encoder.levels.0.res.0.conv_2.bias": "UNet, t = 0 and 1: encoder 2",
        "unet.middle.res_2.conv_2.bias": "UNet, t = 0 and 1: middle",
        "unet.decoder.conv_out.bias": "UNet, t = 0 and 1",
        "controlnet.hint_network.conv_out.bias": "ControlNet residual 1 of",
        "controlnet.zero_convs.2.bias": "ControlNet residual 3 of",
        "controlnet.zero_conv_middle.bias": "ControlNet residual 5 of 5",
    }.items(),
)
def test_a_weight_that_differs_is_found_at_the_first_part_that_it_acts_in(weight, expected, two):
    pair, other = two
    values = other.get_parameter(weight)
    kept = values.clone()
    values.add_(0.01)
    first = first_above(network_rows(pair))
    values.copy_(kept)
    assert first is not None
    assert first.what.startswith(expected)


@pytest.fixture
def call(monkeypatch, filled_file, two, capsys):
    """A function: main() with these rows in the place of diffusers -> (exit code, standard output)."""

    def run(*rows):
        monkeypatch.setattr(parity, "check_extra", lambda *packages: None)
        monkeypatch.setattr(parity, "version", lambda package: "0")
        monkeypatch.setattr(parity, "quiet", lambda: None)
        monkeypatch.setattr(parity, "load_pair", lambda *arguments: two[0])
        monkeypatch.setattr(parity, "samples_of", lambda *arguments: [])
        monkeypatch.setattr(parity, "compare_all", lambda pair, samples: iter(rows))
        code = run_command(lambda: parity.main(["--weights", str(filled_file)]))
        return code, capsys.readouterr().out

    return run


def test_the_exit_code_is_0_without_and_1_with_a_difference(call):
    same, different = compare("same", ONES, ONES), compare("different", planted(1), ONES)
    code, text = call(same)
    assert (code, "first difference above 0.0001: none" in text) == (0, True)
    code, text = call(same, different, same)
    assert (code, "first difference above 0.0001: different" in text) == (1, True)


def test_without_diffusers_one_sentence_says_what_to_install_and_the_exit_code_is_2(monkeypatch, capsys):
    monkeypatch.setattr("ldm_us.runtime.checks.find_spec", lambda name: None)
    assert run_command(lambda: parity.main([])) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error == "error: diffusers is not installed. Install the extra bench: `pip install -e '.[bench]'`.\n"


@pytest.mark.parametrize("steps", ["0", "1000"])
def test_steps_that_one_side_does_not_have_are_refused(steps, capsys):
    assert run_command(lambda: parity.main(["--steps", steps])) == 2
    assert f"--steps {steps}: use 1 to 999" in capsys.readouterr().err


def test_the_default_is_the_bundled_model_and_filled_weights_for_both_predictions():
    bundled, *filled = parity.models_of(parity.parse([]))
    assert bundled == parity.BUNDLED
    assert [config.schedule.prediction for config in filled] == ["eps", "v"]
    assert [config.image_size for config in parity.models_of(parity.parse(["--preset", "sd15"]))] == [512]
