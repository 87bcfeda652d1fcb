"""Grain: what was taken away is measured and given back, by grey and by depth; off, nothing changes."""

import pytest
import torch
import torch.nn.functional as F

from ldm_us.config import config_from_dict
from ldm_us.diffusion.grain import (
    BANDS,
    GREYS,
    SMALLEST,
    Grain,
    depth_weights,
    estimate_grain,
    gain_at,
    noise_shape,
)
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.checkpoint import load_model, save_model

SIDE = 128


def blurred_noise(count, generator):
    """(count, SIDE, SIDE): noise of standard deviation 1, correlated over 3 rows and 9 columns."""
    kernel = torch.outer(torch.hann_window(5, periodic=False)[1:-1], torch.hann_window(11, periodic=False)[1:-1])
    noise = torch.randn(count, 1, SIDE + 2, SIDE + 8, generator=generator)
    return F.conv2d(noise, kernel[None, None] / kernel.norm())[:, 0]


@pytest.fixture(scope="module")
def pairs():
    """Images of many greys with correlated texture whose strength is a tenth of the grey, and the same without it."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0.05, 0.95, SIDE).expand(24, SIDE, SIDE)  # grey grows from left to right
    return list(zip(smooth + 0.1 * smooth * blurred_noise(24, generator), smooth, strict=True))


@pytest.fixture(scope="module")
def grain(pairs):
    return estimate_grain(pairs)


def correlation(texture, down, across):
    """Of neighbours so many rows and columns apart."""
    texture = texture - texture.mean()
    moved = texture[down:, across:]
    return float((texture[: len(moved), : moved.shape[1]] * moved).mean() / texture.var())


def test_the_gain_is_the_standard_deviation_of_what_is_lost_at_each_grey(grain):
    """Grain Eq. 1: here a tenth of the grey."""
    middles = (torch.arange(GREYS) + 0.5) / GREYS
    inside = slice(1, GREYS - 1)  # the outer bins are half empty
    torch.testing.assert_close(grain.gain[inside], 0.1 * middles[inside], rtol=0.05, atol=0.002)
    torch.testing.assert_close(gain_at(grain.gain, middles), grain.gain)


def test_grain_has_the_strength_and_the_correlation_of_what_was_lost(grain, pairs):
    """Grain Eq. 1."""
    images, smooth = (torch.stack(each) for each in zip(*pairs, strict=True))
    noise = torch.randn(noise_shape(smooth[:, None]), generator=torch.Generator().manual_seed(3))
    made = (grain(smooth[:, None], noise)[:, 0] - smooth) / smooth
    lost = (images - smooth) / smooth
    assert float(made[..., 16:-16].std()) == pytest.approx(float(lost[..., 16:-16].std()), rel=0.05)
    for down, across in ((1, 0), (0, 1), (0, 3), (2, 0), (0, 8)):
        expected = sum(correlation(each, down, across) for each in lost) / len(lost)
        found = sum(correlation(each, down, across) for each in made) / len(made)
        assert found == pytest.approx(expected, abs=0.06), (down, across)


def test_grain_grows_wider_and_stronger_with_depth_where_what_was_lost_does():
    """Of one grey all over, twice as strong below as above, and correlated along rows below alone."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.full((40, SIDE, SIDE), 0.5)
    lost = torch.randn(40, SIDE, SIDE, generator=generator)
    lost[:, SIDE // 2 :] = 2 * blurred_noise(40, generator)[:, SIDE // 2 :]
    grain = estimate_grain(list(zip(smooth + 0.03 * lost, smooth, strict=True)))
    noise = torch.randn(noise_shape(smooth[:, None]), generator=generator)
    made = (grain(smooth[:, None], noise)[:, 0] - smooth) / 0.03
    for rows, strength, neighbour in ((slice(8, 48), 1.0, 0.0), (slice(80, 120), 2.0, 0.9)):
        assert float(made[:, rows].std()) == pytest.approx(strength, rel=0.06)
        expected, found = (float(sum(correlation(each, 0, 1) for each in t[:, rows]) / 40) for t in (lost, made))
        assert found == pytest.approx(expected, abs=0.06)
        assert expected == pytest.approx(neighbour, abs=0.1)


def test_a_file_of_before_has_three_bands():
    config = config_from_dict({"vae": {"grain": True}})
    assert Grain(config.vae.grain_bands).taps.shape == (3, 33, 33)


def test_the_bands_of_depth_share_every_row_and_each_is_alone_in_its_middle():
    rows = depth_weights(96, 3)
    torch.testing.assert_close(rows.sum(dim=0), torch.ones(96))
    assert [int(row.argmax()) // 32 for row in rows] == [0, 1, 2]


@pytest.fixture(scope="module")
def model(micro, grain):
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    model.set_grain(grain)
    return model.eval().requires_grad_(False)


def test_a_sample_has_grain_of_its_own_seed_and_none_with_the_option_off(model, micro):
    options = {"seeds": [5, 6]}
    with_grain = generate(model, ["a", "b"], sampling=Sampling(steps=2), **options)
    without = generate(model, ["a", "b"], sampling=Sampling(steps=2, grain=False), **options)
    alone = generate(model, ["b"], seeds=[6], sampling=Sampling(steps=2))
    torch.manual_seed(0)
    plain = LatentDiffusion(micro).eval().requires_grad_(False)
    assert torch.equal(alone[0], with_grain[1])
    assert torch.equal(without, generate(plain, ["a", "b"], sampling=Sampling(steps=2), **options))
    apart = with_grain - without
    assert float(apart.abs().max()) > 0.01
    clipped = ((with_grain == 0) | (with_grain == 1)).any(dim=1, keepdim=True)
    assert float(((apart[:, :1] - apart[:, 1:]).abs() * ~clipped).max()) < 1e-6, "one grey grain for all channels"
    assert float(with_grain.min()) >= 0
    assert float(with_grain.max()) <= 1


def test_a_file_keeps_the_grain_bit_for_bit(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.config.vae.grain
    assert again.config.vae.grain_bands == BANDS
    assert torch.equal(again.grain.taps, model.grain.taps)
    assert torch.equal(again.grain.gain, model.grain.gain)


def test_what_a_reconstruction_lost_nothing_of_has_no_grain_and_no_nan():
    flat = [(torch.full((99, 99), 0.3), torch.full((99, 99), 0.3))] * 4
    grain = estimate_grain(flat)
    assert bool(grain.taps.isfinite().all())
    assert float(grain.gain.abs().max()) == 0


def test_grain_is_the_same_under_autocast(grain):
    x = torch.full((1, 3, 64, 64), 0.5)
    noise = torch.randn(noise_shape(x), generator=torch.Generator().manual_seed(0))
    plain = grain(x, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grain(x, noise), plain)


def test_too_few_images_and_images_too_small_for_bands_are_refused():
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"measured on 4 images or more, not {count}"):
            estimate_grain([(torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE))] * count)
    small = torch.zeros(SMALLEST - 1, SMALLEST - 1)
    with pytest.raises(ValueError, match="images of 96 pixels or more, not 95"):
        estimate_grain([(small, small)] * 4)
