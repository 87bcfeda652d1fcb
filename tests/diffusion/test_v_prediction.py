"""A network that predicts v samples as one that predicts the noise would; guidance and samplers never notice."""

from types import SimpleNamespace

import pytest
import torch

from ldm_us.config import SD15, ScheduleConfig
from ldm_us.diffusion.ddpm import eps_of, make_schedule, predict_z_0, velocity
from ldm_us.diffusion.guidance import Conditions, Guidance, guided_prediction
from ldm_us.diffusion.sampling import Sampling, denoise

EPS = make_schedule(ScheduleConfig(final_alpha_bar_one=True))
V = make_schedule(ScheduleConfig(final_alpha_bar_one=True, prediction="v"))
CONTEXT, NEGATIVE = torch.full((2, 77, 8), 0.5), torch.full((2, 77, 8), -1.0)


def noise(seed, dtype=torch.float32):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def levels(t):
    return EPS.alpha_bar.float()[t].view(-1, 1, 1, 1)


def eps_theta(z_t, t, context, control):
    """A network of the noise that depends on the text."""
    return 0.6 * z_t + torch.tanh(z_t + t.view(-1, 1, 1, 1) / 1000 + context.mean(dim=(1, 2)).view(-1, 1, 1, 1))


def v_theta(z_t, t, context, control):
    """The same knowledge as v: Eq. 4 solved for z_0, then section 4."""
    eps_hat, a = eps_theta(z_t, t, context, control), levels(t)
    z_0_hat = (z_t - (1 - a).sqrt() * eps_hat) / a.sqrt()
    return a.sqrt() * eps_hat - (1 - a).sqrt() * z_0_hat


def model_of(schedule, unet):
    return SimpleNamespace(config=SD15, schedule=schedule, unet=unet, controlnet=None)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_guidance_in_v_is_guidance_in_eps(guidance):
    """Guidance Eq. 6 is linear, and so is Progressive Distillation appendix D."""
    z_t, t = noise(1), torch.tensor([500, 20])
    conditions = Conditions(CONTEXT, NEGATIVE, Guidance(guidance))
    of_eps, of_v = (
        eps_of(schedule, z_t, t, guided_prediction(model_of(schedule, unet), z_t, t, conditions))
        for schedule, unet in ((EPS, eps_theta), (V, v_theta))
    )
    torch.testing.assert_close(of_v, of_eps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_a_perfect_v_network_samples_what_the_perfect_eps_network_samples(sampler, eta, guidance):
    """Progressive Distillation section 4, in the loop of DDIM Eq. 12 and of DDPM Eq. 6."""
    z_0 = noise(2)

    def true_eps(z_t, t, context, control):
        a, of_image = levels(t), z_0.repeat(len(z_t) // 2, 1, 1, 1)
        return (z_t - a.sqrt() * of_image) / (1 - a).sqrt()

    def true_v(z_t, t, context, control):
        return velocity(V, z_0.repeat(len(z_t) // 2, 1, 1, 1), t, true_eps(z_t, t, context, control))

    for schedule, unet in ((EPS, true_eps), (V, true_v)):
        conditions = Conditions(CONTEXT, NEGATIVE, Guidance(guidance))
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        *_, last = denoise(model_of(schedule, unet), noise(3), conditions, generators, Sampling(sampler, 20, eta))
        torch.testing.assert_close(last.z, z_0, rtol=0, atol=1e-3)


def test_a_v_network_taken_for_an_eps_network_is_noticed():
    """Proof that the tests above test something."""
    z_t, t = noise(1), torch.tensor([500, 20])
    conditions = Conditions(CONTEXT, NEGATIVE, Guidance(1.0))
    wrong, right = (
        predict_z_0(schedule, z_t, t, guided_prediction(model_of(schedule, v_theta), z_t, t, conditions))
        for schedule in (EPS, V)
    )
    assert float((wrong - right).abs().max()) > 0.1


def test_the_latents_that_v_turns_are_not_rounded_to_the_dtype_of_the_weights():
    """z_0_hat is sqrt(alpha_bar) z_t - sqrt(1 - alpha_bar) v of the latents as they are, weights in bfloat16 or not."""
    z_t, t = noise(1), torch.tensor([999, 999])
    v, seen = noise(4).bfloat16(), []

    def unet(z, *_):
        seen.append(z.dtype)
        return v

    conditions = Conditions(CONTEXT.bfloat16(), NEGATIVE.bfloat16(), Guidance(1.0))
    z_0_hat = predict_z_0(V, z_t, t, guided_prediction(model_of(V, unet), z_t, t, conditions))
    a = levels(t)
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(z_0_hat, a.sqrt() * z_t - (1 - a).sqrt() * v.float(), rtol=0, atol=1e-6)


def test_a_rescale_keeps_the_spread_of_v_and_so_is_not_that_of_eps():
    """Rescale Eq. 15 in the network's own terms: without it both agree, with it they do not."""
    z_t, t = noise(1), torch.tensor([500, 500])
    apart = []
    for rescale in (0.0, 0.7):
        conditions = Conditions(CONTEXT, NEGATIVE, Guidance(7.5, rescale=rescale))
        of_eps, of_v = (
            predict_z_0(schedule, z_t, t, guided_prediction(model_of(schedule, unet), z_t, t, conditions))
            for schedule, unet in ((EPS, eps_theta), (V, v_theta))
        )
        apart.append(float((of_eps - of_v).abs().max()))
    assert apart[0] < 1e-3
    assert apart[1] > 0.05
