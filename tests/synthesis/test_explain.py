"""Explaining a sample: maps that are the attention itself, a table of control, and nothing left behind."""

import pytest
import torch
from PIL import Image

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import draw, generators_of, latent_shape
from ldm_us.diffusion.sampling import Sampling, conditions_of, denoise, generate
from ldm_us.networks.clip import token_words, tokenize
from ldm_us.networks.layers import Attention
from ldm_us.networks.unet import Control
from ldm_us.synthesis.explain import (
    attention_maps,
    attention_picture,
    control_levels,
    control_picture,
    record,
    trajectory,
)
from tests.synthesis.conftest import trained

PROMPTS = ["Ultrasound image of a benign breast", "Ultrasound image of a normal breast"]


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    return trained(LatentDiffusion(micro))


@pytest.fixture(scope="module")
def masks():
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 4:10, 3:9] = 1
    return masks


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_recording_changes_no_bit_of_the_sample_and_leaves_no_hook_behind(model, masks):
    before = hooks_of(model)
    plain = generate(model, PROMPTS[:1], masks=masks, sampling=Sampling(steps=3, guidance=3.0))
    with record(model):
        assert hooks_of(model) > before
        recorded = generate(model, PROMPTS[:1], masks=masks, sampling=Sampling(steps=3, guidance=3.0))
    assert torch.equal(plain, recorded)
    assert hooks_of(model) == before


def test_a_failure_within_the_block_leaves_no_hook_behind_either(model):
    before = hooks_of(model)
    with pytest.raises(RuntimeError, match="stop"), record(model):
        raise RuntimeError("stop")
    assert hooks_of(model) == before


def test_a_map_is_the_softmax_of_scaled_products_averaged_over_the_heads():
    """Attention Eq. 1, position by position and head by head in a loop."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    attention = Attention(8, heads=2, context_width=6)
    tokens, context = torch.randn(1, 6, 8, generator=generator), torch.randn(1, 5, 6, generator=generator)
    maps = attention_maps(attention, tokens, context, (2, 3))
    q, k = tokens[0] @ attention.to_q.weight.T, context[0] @ attention.to_k.weight.T
    for place in range(6):
        weights = torch.zeros(5)
        for head in (slice(0, 4), slice(4, 8)):
            scores = torch.stack([(q[place, head] * k[i, head]).sum() / 2.0 for i in range(5)]).exp()
            weights += scores / scores.sum() / 2
        torch.testing.assert_close(maps[0, :, place // 3, place % 3], weights, rtol=1e-5, atol=1e-6)


def test_maps_of_a_coarser_level_are_brought_to_the_size_of_the_latents():
    torch.manual_seed(0)
    attention = Attention(8, heads=2, context_width=6)
    maps = attention_maps(attention, torch.randn(1, 8, 8), torch.randn(1, 5, 6), (4, 8))
    assert maps.shape == (1, 5, 4, 8)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_tokens_share_the_attention_of_every_place_and_guidance_counts_the_prompts_half(model, guidance):
    with record(model) as seen:
        generate(model, PROMPTS[:1], sampling=Sampling(steps=2, guidance=guidance))
    maps = seen.maps()
    assert maps.shape == (1, 77, 4, 4)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, 4, 4), rtol=0, atol=1e-5)
    layers = sum(len(level.transformers) for level in [*model.unet.encoder.levels, *model.unet.decoder.levels])
    assert seen.layers == 2 * (layers + 1)  # steps; the middle has one more


def test_under_guidance_only_the_half_with_the_prompt_is_seen(model):
    z_t, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 500])
    context = model.encode_prompts(["", PROMPTS[0]])
    with record(model) as both:
        model.unet(z_t, t, context)
    with record(model) as alone:
        model.unet(z_t[1:], t[1:], context[1:])
    torch.testing.assert_close(both.maps(), alone.maps(), rtol=1e-5, atol=1e-6)


def test_control_is_the_root_mean_square_of_each_levels_residuals():
    skips = [torch.full((2, 3, 4, 4), 1.0), torch.full((2, 3, 4, 4), 7.0), torch.full((2, 3, 2, 2), 2.0)]
    levels = control_levels(Control(skips, torch.full((2, 3, 2, 2), -3.0)))
    assert levels == {"4x4": 5.0, "2x2": 2.0, "middle": 3.0}


def test_the_recorded_control_is_that_which_the_unet_takes_scale_included(model, masks):
    recorded = []
    for scale in (1.0, 2.0):
        with record(model) as seen:
            sampling = Sampling(steps=1, guidance=1.0, control_scale=scale)
            generate(model, PROMPTS[:1], masks=masks, sampling=sampling)
        recorded.append(seen.control)
    ((t, once),), ((_, twice),) = recorded
    assert t == 1
    assert twice == pytest.approx({name: 2 * value for name, value in once.items()})


def test_words_are_those_of_the_tokens_between_start_and_end():
    words = token_words(PROMPTS[0])
    assert words == ["ultrasound", "image", "of", "a", "ben", "ign", "breast"]
    tokens = tokenize(PROMPTS[0])[0]
    assert int((tokens != tokens[-1]).sum()) == 1 + len(words)


def test_pictures_have_a_cell_a_word_and_a_row_a_level(model, masks):
    with record(model) as seen:
        x = generate(model, PROMPTS[:1], masks=masks, sampling=Sampling(steps=3, guidance=3.0))[0]
    picture = attention_picture(seen, x, PROMPTS[0])
    assert isinstance(picture, Image.Image)
    assert picture.width > 8 * 16
    assert control_picture(seen).height > 3 * 28


def test_learned_prompt_vectors_move_the_words(micro):
    torch.manual_seed(0)
    model = LatentDiffusion(micro).eval().requires_grad_(False)
    model.add_prompt_tokens(3, torch.Generator().manual_seed(0))
    with record(model) as seen:
        generate(model, PROMPTS[:1], sampling=Sampling(steps=1, guidance=1.0))
    assert seen.learned == 3


def test_no_record_and_no_control_are_refused(model):
    with record(model) as seen:
        pass
    with pytest.raises(ValueError, match="nothing was recorded"):
        seen.maps()
    with pytest.raises(ValueError, match="no ControlNet acted"):
        control_picture(seen)


def walked(model, prompt, steps):
    """Every Step of a sample, as `generate` walks it."""
    sampling = Sampling(steps=steps).resolved(model.config, masked=False)
    generators = generators_of([0])
    z_T = draw((1, *latent_shape(model, None)), generators)
    return list(denoise(model, z_T, conditions_of(model, [prompt], sampling), generators, sampling))


def test_a_trajectory_shows_first_and_last_step_in_two_rows(model):
    steps = walked(model, PROMPTS[1], 5)
    whole, part = trajectory(model, steps), trajectory(model, steps[::4])
    assert whole.height == part.height > 2 * 16
    assert whole.width - part.width == 3 * (16 + 4)
    with pytest.raises(ValueError, match="at least one step"):
        trajectory(model, [])


def test_the_last_cells_of_a_trajectory_are_the_sample_itself(model):
    steps = walked(model, PROMPTS[0], 3)
    image = generate(model, PROMPTS[:1], sampling=Sampling(steps=3))[0].mean(dim=0)
    picture = trajectory(model, steps)
    corner = picture.crop((picture.width - 20, picture.height - 40, picture.width - 4, picture.height - 24))
    expected = (image * 255).round().to(torch.uint8).flatten().tolist()
    assert list(corner.tobytes()) == expected
