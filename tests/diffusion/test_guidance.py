"""Guidance: the rescaled prediction, the interval of noise levels, and what each costs."""

import pytest
import torch

from ldm_us.config import ScheduleConfig
from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.guidance import Conditions, Guidance, guided_prediction, guides_at, noise_level, rescaled
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate

SCHEDULE = make_schedule(ScheduleConfig())


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    return LatentDiffusion(micro).eval().requires_grad_(False)


@pytest.fixture
def batches(model):
    """The batch size of every call of the UNet."""
    sizes = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()


def two_predictions():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0]).view(
        2, 1, 1, 1, 1
    )


def test_rescaled_by_1_a_prediction_has_the_spread_of_the_one_with_the_prompt_in_each_sample():
    """Rescale Eq. 15, with numpy's standard deviation."""
    eps_cfg, eps_c = two_predictions()
    result = rescaled(eps_cfg, eps_c, 1.0)
    for one, guided, with_prompt in zip(result.numpy(), eps_cfg.numpy(), eps_c.numpy(), strict=True):
        assert one.std() == pytest.approx(with_prompt.std(), rel=1e-12)
        assert one / one.std() == pytest.approx(guided / guided.std(), rel=1e-9)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7])
def test_a_rescale_between_mixes_the_plain_and_the_rescaled_prediction(rescale):
    """Rescale Eq. 16."""
    eps_cfg, eps_c = two_predictions()
    expected = eps_cfg + rescale * (rescaled(eps_cfg, eps_c, 1.0) - eps_cfg)
    torch.testing.assert_close(rescaled(eps_cfg, eps_c, rescale), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_guidance_with_rescale_is_the_formula_of_two_separate_calls(model):
    """Guidance Eq. 6, then Rescale Eq. 15 and Rescale Eq. 16."""
    z_t, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([500, 20])
    context, negative = model.encode_prompts(["a", "b"]), model.encode_prompts(["", "c"])
    eps_c, eps_u = model.unet(z_t, t, context), model.unet(z_t, t, negative)
    eps_cfg = eps_u + 5.0 * (eps_c - eps_u)
    factor = torch.stack([c.std() / cfg.std() for c, cfg in zip(eps_c, eps_cfg, strict=True)]).view(2, 1, 1, 1)
    guided = guided_prediction(model, z_t, t, Conditions(context, negative, Guidance(5.0, rescale=0.7)))
    torch.testing.assert_close(guided, (0.7 * factor + 0.3) * eps_cfg, rtol=1e-4, atol=1e-5)


def test_the_noise_level_is_that_of_z_t_scaled_to_the_signal():
    for t in (0, 500, 999):
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)[: t + 1] ** 2
        alpha_bar = float((1 - beta).prod())
        assert noise_level(SCHEDULE, t) == pytest.approx((1 / alpha_bar - 1) ** 0.5, rel=1e-9)


def test_an_interval_guides_the_noise_levels_in_it_and_calls_the_others_at_batch_b(model, batches):
    interval = (0.5, 4.0)
    sampling = Sampling(steps=10, guidance=5.0, guidance_interval=interval, exact=False)
    generate(model, ["a", "b"], sampling=sampling)
    levels = [noise_level(SCHEDULE, t) for t, _ in ddim_timesteps(SCHEDULE, 10)]
    assert batches == [4 if 0.5 < sigma <= 4.0 else 2 for sigma in levels]
    assert set(batches) == {2, 4}


def test_an_interval_over_all_noise_levels_changes_nothing_and_one_without_any_is_guidance_1(model):
    plain, alone, everywhere, nowhere = (
        generate(model, ["a"], sampling=Sampling(steps=3, guidance=scale, guidance_interval=interval))
        for scale, interval in ((5.0, None), (1.0, None), (5.0, (0.0, 100.0)), (5.0, (90.0, 100.0)))
    )
    assert torch.equal(everywhere, plain)
    assert torch.equal(nowhere, alone)
    assert not torch.equal(plain, alone)


def test_guidance_1_is_one_call_at_batch_b_with_an_interval_and_a_rescale_too(model, batches):
    limits = {"guidance_rescale": 0.7, "guidance_interval": (0.1, 5.0)}
    generate(model, ["a", "b"], sampling=Sampling(steps=3, guidance=1.0, exact=False, **limits))
    assert batches == [2] * 3
    assert not guides_at(Guidance(1.0), SCHEDULE, torch.tensor([500]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interval": (5.0, 0.2)}, r"guidance interval 5\.0 to 0\.2: give the smaller noise level first"),
        ({"interval": (-1.0, 2.0)}, r"guidance interval -1\.0 to 2\.0"),
        ({"interval": (1.0, 1.0)}, r"guidance interval 1\.0 to 1\.0"),
        ({"rescale": 1.5}, r"guidance rescale 1\.5: use 0 \(plain guidance\) to 1"),
    ],
)
def test_a_reversed_interval_and_a_rescale_outside_0_to_1_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**wrong)
