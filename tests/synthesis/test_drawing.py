"""A sample is its prompt, mask and seed alone: the same bits in every batch, at every place, with every history."""

import random
import threading
import time
from dataclasses import replace

import pytest
import torch

from ldm_us.config import BUNDLED
from ldm_us.diffusion.sampling import Sampling
from ldm_us.files.checkpoint import load_model
from ldm_us.synthesis.drawing import Wanted, at_a_time, draw_samples
from ldm_us.synthesis.recipe import Recipe

MODELS = ["us128", "micro"]


@pytest.fixture(scope="module")
def models(weights):
    return {"us128": load_model(BUNDLED), "micro": load_model(weights)}


def draw_images(model, wanted, **sampling):
    """Samples (n, 3, H, W)."""
    settings = {"guidance": 2.0, "control_scale": 1.0, "steps": 2} | sampling
    recipe = Recipe(Sampling(**settings).resolved(model.config, masked=False))
    return torch.stack([drawn.x for drawn in draw_samples(model, wanted, recipe)])


def wanted_of(model, masked):
    """Four samples of two prompts, with four masks or none."""
    size = model.config.image_size
    masks = torch.zeros(4, 1, size, size)
    for i in range(4):
        masks[i, :, size // 4 : size // 2 + i, size // 4 : size // 2] = 1
    return [Wanted(f"a {'benign' if i % 2 else 'malignant'} breast", i, masks[i] if masked else None) for i in range(4)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("noise", [{}, {"sampler": "ddpm"}, {"sampler": "dpm"}, {"precision": "bf16"}])
def test_neither_batch_nor_place_nor_neighbours_change_a_bit(models, name, masked, noise):
    model, moments = models[name], random.Random(0)
    wanted = wanted_of(model, masked)
    alone = [draw_images(model, [one], **noise)[0] for one in wanted]
    for size in (2, 3, 4):
        order = moments.sample(range(4), size)
        together = draw_images(model, [wanted[i] for i in order], **noise)
        assert all(torch.equal(image, alone[i]) for image, i in zip(together, order, strict=True)), (size, order)


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddpm", "precision": "bf16"}])
@pytest.mark.parametrize("name", MODELS)
def test_on_several_cores_samples_are_drawn_side_by_side_with_the_bits_of_one_after_the_other(models, name, settings):
    model, threads, before = models[name], set(), torch.get_num_threads()
    wanted = wanted_of(model, masked=True)
    one_by_one = [draw_images(model, [one], **settings)[0] for one in wanted]
    barrier = threading.Barrier(3, timeout=60)  # each of the first three waits until all of them draw

    def see_call(*_):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            barrier.wait()

    torch.set_num_threads(3)
    handle = model.unet.register_forward_pre_hook(see_call)
    try:
        together = draw_images(model, wanted, **settings)
        assert torch.get_num_threads() == 3
    finally:
        handle.remove()
        torch.set_num_threads(before)
    assert len(threads) == 3
    assert all(torch.equal(image, alone) for image, alone in zip(together, one_by_one, strict=True))


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_a_stop_ends_the_samples_beside_it_within_their_step_and_begins_no_other(models, problem):
    """The main thread is told of Ctrl-C while it waits for the first sample; here that sample itself ends so."""
    model, calls, before = models["micro"], [], torch.get_num_threads()
    first, ended = threading.Event(), threading.Event()

    def see_call(*_):
        calls.append(threading.get_ident())
        if not first.is_set():
            first.set()
            while len(set(calls)) < 2:  # until there is a sample beside it, which waits in its first step
                pass
            ended.set()
            raise problem("stop")
        assert ended.wait(60)
        time.sleep(0.2)  # the main thread sets the flag meanwhile

    torch.set_num_threads(2)
    handle = model.unet.register_forward_pre_hook(see_call)
    try:
        with pytest.raises(problem):
            draw_images(model, wanted_of(model, masked=False), steps=50)
        assert torch.get_num_threads() == 2
    finally:
        handle.remove()
        torch.set_num_threads(before)
    assert len(calls) <= 4, "of 4 samples of 50 steps"


def test_a_cpu_is_given_a_sample_a_core_unless_a_batch_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    recipe = Recipe(Sampling(threads=2))
    assert [at_a_time(None, recipe, "cpu"), at_a_time(3, recipe, "cpu"), at_a_time(None, recipe, "cuda")] == [8, 3, 4]
    assert at_a_time(None, Recipe(Sampling(threads=16)), "cpu") == 4


def test_only_before_edition_2_seeds_that_agree_in_their_last_32_bits_draw_one_picture(models):
    model = models["micro"]
    recipe = Recipe(Sampling(guidance=2.0, control_scale=1.0, steps=2).resolved(model.config, masked=False))
    for edition in (1, 2):
        wanted = [Wanted("a breast", seed, None) for seed in (7, 2**32 + 7)]
        small, large = draw_samples(model, wanted, replace(recipe, edition=edition))
        assert torch.equal(small.x, large.x) == (edition == 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_neither_batch_nor_place_change_a_bit(precision):
    model = load_model(BUNDLED, device="cuda")
    wanted = wanted_of(model, masked=True)
    together = draw_images(model, wanted, precision=precision)
    assert all(torch.equal(draw_images(model, wanted[i:], precision=precision)[0], together[i]) for i in range(4))


def test_a_whole_batch_in_one_call_differs_by_rounding_at_most(models):
    model = models["us128"]
    wanted = wanted_of(model, masked=True)
    exact, fast = (draw_images(model, wanted, exact=exact) for exact in (True, False))
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-4)


def test_one_sample_makes_one_network_call_a_step_whatever_the_batch(models):
    model, sizes = models["micro"], []
    handle = model.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for exact, guidance in ((True, 2.0), (True, 1.0), (False, 2.0)):
        draw_images(model, wanted_of(model, False), guidance=guidance, steps=1, exact=exact)
    handle.remove()
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1, 8]
