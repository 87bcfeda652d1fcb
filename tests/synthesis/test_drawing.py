"""A sample is its prompt, mask and seed alone: the same bits in every batch, at every place, with every history."""

import random

import pytest
import torch

from ldm_us.files.checkpoint import BUNDLED, load_model
from ldm_us.synthesis.drawing import Settings, Wanted, cpu_threads, draw_images, settings_from_text

MODELS = ["us128", "micro"]


@pytest.fixture(scope="module")
def models(weights):
    return {"us128": load_model(BUNDLED), "micro": load_model(weights)}


def wanted_of(model, masked):
    """Four samples of two prompts, with four masks or none."""
    size = model.config.image_size
    masks = torch.zeros(4, 1, size, size)
    for i in range(4):
        masks[i, :, size // 4 : size // 2 + i, size // 4 : size // 2] = 1
    return [Wanted(f"a {'benign' if i % 2 else 'malignant'} breast", i, masks[i] if masked else None) for i in range(4)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("noise", [{}, {"sampler": "ddpm"}, {"precision": "bf16"}])
def test_neither_batch_nor_place_nor_neighbours_change_a_bit(models, name, masked, noise):
    model, moments = models[name], random.Random(0)
    settings = Settings(model.config.image_size, guidance=2.0, control_scale=1.0, steps=2, **noise)
    wanted = wanted_of(model, masked)
    alone = [draw_images(model, [one], settings)[0] for one in wanted]
    for size in (2, 3, 4):
        order = moments.sample(range(4), size)
        together = draw_images(model, [wanted[i] for i in order], settings)
        assert all(torch.equal(image, alone[i]) for image, i in zip(together, order, strict=True)), (size, order)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_neither_batch_nor_place_change_a_bit(precision):
    model = load_model(BUNDLED, device="cuda")
    settings = Settings(128, guidance=2.0, control_scale=1.0, steps=2, precision=precision)
    wanted = wanted_of(model, masked=True)
    together = draw_images(model, wanted, settings)
    assert all(torch.equal(draw_images(model, wanted[i:], settings)[0], together[i]) for i in range(4))


def test_a_whole_batch_in_one_call_differs_by_rounding_at_most(models):
    model = models["us128"]
    exact, fast = (Settings(128, 2.0, 1.0, steps=2, exact=exact) for exact in (True, False))
    wanted = wanted_of(model, masked=True)
    torch.testing.assert_close(draw_images(model, wanted, fast), draw_images(model, wanted, exact), rtol=0, atol=1e-4)


def test_one_sample_makes_one_network_call_a_step_whatever_the_batch(models):
    model, sizes = models["micro"], []
    handle = model.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for exact, guidance in ((True, 2.0), (True, 1.0), (False, 2.0)):
        draw_images(model, wanted_of(model, False), Settings(16, guidance, 1.0, steps=1, exact=exact))
    handle.remove()
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1, 8]


def test_the_number_of_threads_is_a_setting_and_is_put_back():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_settings_survive_text_bit_for_bit_and_a_wrong_one_is_named():
    settings = Settings(128, 1 / 3, 2.0, "calipers", "ddpm", 7, 0.1, "bf16", 3, False)
    text = {name: str(value) for name, value in vars(settings).items()}
    assert settings_from_text(text) == settings
    for wrong in ({"steps": "many"}, {"exact": "1"}):
        with pytest.raises(ValueError, match=f"the field {next(iter(wrong))} is missing or is no"):
            settings_from_text(text | wrong)
