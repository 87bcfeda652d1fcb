"""The stream of batches: exact epochs, draws that depend on (seed, step) alone, image and mask mirrored together."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from ldm_us.data.organ import BREAST
from ldm_us.data.records import Record
from ldm_us.runtime.processes import ALONE, World
from ldm_us.training.batches import batch_indices, image_batch, latent_batch, stream_generator
from ldm_us.training.command_line import parse_options
from ldm_us.training.dataset import TrainingSet, image_moments, to_signed
from ldm_us.training.stages import Stage
from ldm_us.training.start import random_model

N = 6


@pytest.fixture(scope="module")
def model(micro):
    return random_model("micro", seed=0).requires_grad_(False)


@pytest.fixture(scope="module")
def data(model):
    """Noise images whose latents have hardly any spread, so that z_0 tells which image it is of."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, 1, 16, 16), generator=generator, dtype=torch.uint8)
    masks = torch.rand(N, 1, 16, 16, generator=generator) > 0.5
    labels = ["benign", "normal"] * (N // 2)
    records = [Record(Path(f"{i}.png"), (), label, BREAST.prompt(label), str(i)) for i, label in enumerate(labels)]
    prompts = ["", BREAST.prompt("benign"), BREAST.prompt("normal")]
    training_set = TrainingSet(records, pixels, masks, prompts, torch.tensor([1, 2] * (N // 2)))
    for i in range(N):
        training_set.moments[i] = image_moments(model, training_set, i)
        training_set.moments[i][:, 4:] = -30.0  # log variance
    return training_set


def draw(data, step=0, seed=0, size=4, flip=True, caption_dropout=0.1):
    return latent_batch(data, 2.0, 1000, seed, step, size, flip, caption_dropout)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("n", "size"), [(6, 2), (6, 4), (5, 3), (3, 7), (1, 2)])
def test_every_epoch_is_a_permutation_and_batches_run_across_epochs(n, size):
    stream = torch.cat([batch_indices(n, 0, step, size) for step in range(4 * n)])
    assert len(stream) == 4 * n * size
    for epoch in stream.view(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(batch_indices(20, seed, epoch, 20).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_batch_of_a_step_is_a_function_of_seed_and_step_alone(data):
    before = {step: draw(data, step) for step in (0, 1, 7)}
    images = image_batch(data, (4, 4, 4), 0, 7, 4, flip=True)
    torch.manual_seed(99)
    draw(data, 3)
    for step in (7, 0, 1):
        assert equal(draw(data, step), before[step])
    assert equal(image_batch(data, (4, 4, 4), 0, 7, 4, flip=True), images)


def test_another_step_or_seed_draws_other_noise_and_timesteps(data):
    batches = [draw(data), draw(data, step=1), draw(data, seed=1)]
    for a, b in itertools.combinations(batches, 2):
        assert not torch.equal(a.eps, b.eps)
        assert not torch.equal(a.t, b.t)


def test_streams_with_different_counters_differ():
    counters = list(itertools.product(range(4), range(2), range(10)))
    draws = {tuple(torch.rand(4, generator=stream_generator(*counter)).tolist()) for counter in counters}
    assert len(draws) == len(counters)


def test_the_mirrored_latents_are_those_of_the_mirrored_image(model, data):
    for i in range(N):
        x = to_signed(data.pixels[i : i + 1])
        for moments, picture in zip(data.moments[i], (x, x.flip(-1)), strict=True):
            torch.testing.assert_close(moments[:4], model.vae.moments(picture)[0, :4])
    means = torch.stack([data.moments[i][:, :4] for i in range(N)])
    assert not torch.allclose(means[:, 1], means[:, 0].flip(-1), atol=1e-3), "not just mirrored"


def test_latents_and_mask_are_of_the_same_image_and_mirrored_together(data):
    seen = set()
    for step in range(12):
        batch, index = draw(data, step), batch_indices(N, 0, step, 4)
        for i, z_0, mask in zip(index.tolist(), batch.z_0, batch.mask, strict=True):
            mirrored = not torch.equal(mask, data.masks[i])
            assert torch.equal(mask, data.masks[i].flip(-1) if mirrored else data.masks[i])
            torch.testing.assert_close(z_0, 2.0 * data.moments[i][int(mirrored), :4], atol=1e-5, rtol=0)
            seen.add(mirrored)
    assert seen == {True, False}


def test_the_vae_sees_images_as_they_are_or_mirrored(data):
    seen = set()
    for step in range(12):
        batch, index = image_batch(data, (4, 4, 4), 0, step, 4, flip=True), batch_indices(N, 0, step, 4)
        for x, original in zip(batch.x, to_signed(data.pixels[index]), strict=True):
            mirrored = not torch.equal(x, original)
            assert torch.equal(x, original.flip(-1) if mirrored else original)
            seen.add(mirrored)
        assert batch.noise.shape == (4, 4, 4, 4)
    assert seen == {True, False}


def test_without_flip_nothing_is_mirrored(data):
    index = batch_indices(N, 0, 0, 24)
    assert torch.equal(image_batch(data, (4, 4, 4), 0, 0, 24, flip=False).x, to_signed(data.pixels[index]))
    assert torch.equal(draw(data, size=24, flip=False).mask, data.masks[index])


def test_latents_are_drawn_from_the_scaled_posterior(data):
    """VAE section 2.4: mean 2 * mu and standard deviation 2 * sigma, for a scale of 2."""
    moments = torch.cat([torch.full((N, 2, 4, 4, 4), 3.0), torch.full((N, 2, 4, 4, 4), 0.25).log()], dim=2)
    z_0 = draw(dataclasses.replace(data, moments=moments), size=600).z_0
    assert abs(float(z_0.mean()) - 6.0) < 0.03  # 38,400 values: standard error 0.005
    assert abs(float(z_0.std()) - 1.0) < 0.03


def test_the_share_of_dropped_captions_is_the_one_asked_for(data):
    n = 4000
    index, prompt = batch_indices(N, 0, 0, n), draw(data, size=n, caption_dropout=0.1).prompt_index
    dropped = prompt == 0
    assert abs(int(dropped.sum()) - 400) < 95  # five standard deviations
    assert torch.equal(prompt[~dropped], data.prompt_index[index][~dropped])
    assert int((draw(data, size=n, caption_dropout=0.0).prompt_index == 0).sum()) == 0
    assert data.prompts[0] == ""


def test_t_covers_every_timestep_evenly(data):
    t = draw(data, size=20_000).t
    counts = torch.bincount(t, minlength=1000)
    assert len(counts) == 1000
    assert counts.min() > 0
    assert counts.max() < 20 + 6 * 20**0.5


def with_offset(data, offset_noise, size=4, step=0):
    return latent_batch(data, 2.0, 1000, 0, step, size, True, 0.1, offset_noise)


def test_without_offset_noise_every_bit_of_a_batch_is_what_it_was(data):
    """And with it, every bit but those of eps."""
    for step in range(3):
        plain = draw(data, step)
        assert equal(with_offset(data, 0.0, step=step), plain)
        offset = with_offset(data, 0.1, step=step)
        assert equal(offset[:-1], plain[:-1])
        assert not torch.equal(offset.eps, plain.eps)


def test_offset_noise_is_one_normal_number_an_image_and_channel(data):
    shifts = (with_offset(data, 0.1, size=500).eps - draw(data, size=500).eps) / 0.1  # (500, 4, 4, 4)
    torch.testing.assert_close(shifts, shifts.mean(dim=(2, 3), keepdim=True).expand_as(shifts), rtol=0, atol=1e-4)
    shifts = shifts[..., 0, 0]
    assert abs(float(shifts.mean())) < 5 / 2000**0.5
    assert abs(float(shifts.std()) - 1) < 5 / 4000**0.5
    correlation = torch.corrcoef(shifts.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / 500**0.5, "the channels of an image have numbers of their own"


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_the_parts_of_a_batch_accumulated_or_of_two_processes_are_the_whole_batch(model, busi, tmp_path, data, stage):
    def batches(batch, accumulate, world=ALONE):
        argv = [stage, "--preset", "micro", "--data", busi, "--out", tmp_path / "run", "--steps", 1]
        argv += ["--batch", batch, "--accumulate", accumulate]
        made = Stage(model, data, parse_options([str(value) for value in argv]))
        made.world = world  # no other process runs that it could wait for
        return made.batches(3)

    (whole,), parts = batches(6, 1), batches(2, 3)
    shares = [batches(4, 3, World(rank, 2)) for rank in range(2)]
    assert [len(part[0]) for part in parts] == [2, 2, 2]
    assert [len(part[0]) for share in shares for part in share] == [2] * 6
    (twelve,) = batches(12, 1)
    for i, value in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), value)
        assert torch.equal(torch.cat([share[part][i] for part in range(3) for share in shares]), twelve[i])


def test_masks_travel_as_one_bool_a_pixel_and_only_where_a_controlnet_learns(data):
    with_masks, without = (latent_batch(data, 2.0, 1000, 0, 5, 4, True, 0.1, masked=masked) for masked in (True, False))
    assert with_masks.mask.dtype == torch.bool
    assert with_masks.mask.shape == (4, 1, *data.frame(0).size)
    assert without.mask.numel() == 0
    assert equal(with_masks._replace(mask=without.mask), without)
