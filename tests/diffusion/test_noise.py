"""Noise of a sample's own in its decoder: by its seed alone, off with the grain, in a file, and not in kept pixels."""

import pytest
import torch

from ldm_us.diffusion.inpainting import composed
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import decoder_noise, draw, generators_of
from ldm_us.diffusion.sampling import Sampling, decode, generate
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.training.start import random_model

TWO_STEPS = Sampling(steps=2)


def plain_model(micro):
    torch.manual_seed(0)
    return LatentDiffusion(micro).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain(micro):
    return plain_model(micro)


@pytest.fixture(scope="module")
def model(micro):
    """The same weights, with noise in two levels of the decoder."""
    model = plain_model(micro)
    model.add_decoder_noise(2)
    for gain in model.requires_grad_(False).vae.decoder.noise_gains:
        gain.fill_(0.3)
    return model


def test_a_sample_has_noise_of_its_own_seed_alone_or_in_a_batch_and_none_without_grain(model, plain):
    batch = generate(model, ["a", "b"], seeds=[5, 6], sampling=TWO_STEPS)
    assert torch.equal(generate(model, ["b"], seeds=[6], sampling=TWO_STEPS)[0], batch[1])
    without = generate(model, ["a", "b"], seeds=[5, 6], sampling=Sampling(steps=2, grain=False))
    assert torch.equal(without, generate(plain, ["a", "b"], seeds=[5, 6], sampling=TWO_STEPS))
    assert float((batch - without).abs().mean()) > 0.01


def test_the_noise_of_a_sample_is_drawn_after_what_its_way_has_drawn(model):
    z = torch.zeros(2, *(4, 4, 4))
    used = generators_of([5, 6])
    [torch.randn(3, generator=generator) for generator in used]
    noise = decoder_noise(model, z, used)
    assert noise.shape == (2, model.vae.noise_size(4, 4))
    assert not torch.equal(noise, decoder_noise(model, z, generators_of([5, 6])))


def test_a_model_without_such_levels_draws_nothing(plain):
    generators = generators_of([5])
    before = generators[0].get_state()
    assert decoder_noise(plain, torch.zeros(1, 4, 4, 4), generators).shape == (1, 0)
    assert torch.equal(generators[0].get_state(), before)


def test_levels_that_were_just_added_change_no_output_without_noise_and_other_levels_are_refused(micro, plain):
    model = plain_model(micro)
    model.add_decoder_noise(1)
    drawn, expected = (generate(each, ["a"], seeds=[5], sampling=TWO_STEPS) for each in (model, plain))
    assert not torch.equal(drawn, expected)
    plainly = Sampling(steps=2, grain=False)
    assert torch.equal(generate(model, ["a"], seeds=[5], sampling=plainly), expected)
    model.add_decoder_noise(1)
    with pytest.raises(ValueError, match="1 levels of this decoder add noise already: go on with those, not with 2"):
        model.add_decoder_noise(2)
    with pytest.raises(ValueError, match="4 levels with noise: this decoder has 3"):
        plain.add_decoder_noise(4)
    assert plain.config.vae.noise_levels == 0


def test_a_file_keeps_the_gains_bit_for_bit_and_one_of_before_has_none(model, plain, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.config.vae.noise_levels == 2
    assert torch.equal(generate(again, ["a"], sampling=TWO_STEPS), generate(model, ["a"], sampling=TWO_STEPS))
    save_model(plain, tmp_path / "plain.safetensors")
    assert load_model(tmp_path / "plain.safetensors").vae.noise_size(4, 4) == 0


def test_a_region_that_is_drawn_anew_has_noise_and_the_pixels_around_it_are_kept(model):
    x, region = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1, torch.zeros(1, 1, 16, 16)
    region[..., 4:12, 4:12] = 1
    z_0 = model.vae.encode(x).mean
    inside = region.expand_as(x) > 0
    drawn = composed(model, z_0, x, region, TWO_STEPS, generators_of([5]))
    assert torch.equal(drawn[~inside], (x / 2 + 0.5)[~inside])
    assert torch.equal(drawn[inside], decode(model, z_0, decoder_noise(model, z_0, generators_of([5])))[inside])
    assert not torch.equal(drawn[inside], decode(model, z_0)[inside])
    without = composed(model, z_0, x, region, TWO_STEPS, generators_of([5]), paste=False)
    assert torch.equal(without[inside], decode(model, z_0)[inside])


def test_seeds_that_agree_in_their_last_32_bits_draw_other_noise_and_small_ones_that_of_torch():
    seeds = [5, 2**32 + 5, 2**33 + 5, 2**63 - 1]
    drawn = [draw((1, 8), generators_of([seed])) for seed in seeds]
    assert torch.equal(drawn[0][0], torch.randn(8, generator=torch.Generator().manual_seed(5)))
    assert not any(torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))


def test_random_weights_depend_on_all_bits_of_their_seed():
    first, second = (random_model("tiny", seed).unet.state_dict() for seed in (3, 2**32 + 3))
    assert not torch.equal(first["encoder.conv_in.weight"], second["encoder.conv_in.weight"])
