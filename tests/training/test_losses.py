"""The losses against sums in float64, and which weights they give gradients."""

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from ldm_us.config import PREDICTIONS, ScheduleConfig
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.training.batches import ImageBatch, LatentBatch
from ldm_us.training.losses import ddpm_loss, min_snr_weight, vae_loss
from ldm_us.training.start import random_model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    z_0, eps = (torch.randn(3, 4, 4, 4, generator=generator) for _ in range(2))
    mask = torch.rand(3, 1, 16, 16, generator=generator) > 0.5
    return LatentBatch(z_0, torch.tensor([0, 1, 2]), mask, torch.tensor([0, 500, 999]), eps)


@pytest.fixture
def context():
    return torch.randn(3, 77, 8, generator=torch.Generator().manual_seed(1))


def alpha_bar(t):
    """The product of 1 - beta up to t, in Python's doubles (DDPM section 2; SD's betas)."""
    first, last = math.sqrt(0.00085), math.sqrt(0.012)
    return math.prod(1 - (first + (last - first) * i / 999) ** 2 for i in range(t + 1))


def test_ddpm_loss_is_the_mean_squared_error_of_the_noise(batch, context):
    """DDPM Eq. 4 and DDPM Eq. 14, LDM Eq. 3: against a loop in float64, with a denoiser that is a formula."""

    def eps_theta(z_t, t, context, control):
        assert control is None
        return 0.3 * z_t.tanh() + t.view(-1, 1, 1, 1) / 1000 + context.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    model = SimpleNamespace(schedule=make_schedule(ScheduleConfig()), unet=eps_theta, controlnet=None)
    loss, extra = ddpm_loss(model, batch, context, use_control=False)

    errors = []
    for i, t in enumerate(batch.t.tolist()):
        a, c = alpha_bar(t), float(context[i].double().mean())
        for z_0, eps in zip(batch.z_0[i].flatten().tolist(), batch.eps[i].flatten().tolist(), strict=True):
            z_t = math.sqrt(a) * z_0 + math.sqrt(1 - a) * eps
            errors.append((0.3 * math.tanh(z_t) + t / 1000 + c - eps) ** 2)
    assert float(loss) == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert extra == {}


def snr(t):
    """Signal over noise, as powers."""
    return alpha_bar(t) / (1 - alpha_bar(t))


def errors_by_image(batch, prediction):
    """The squared errors of `quarter`, value by value in Python's doubles: one list an image."""
    errors = []
    for i, t in enumerate(batch.t.tolist()):
        signal, noise = math.sqrt(alpha_bar(t)), math.sqrt(1 - alpha_bar(t))
        values = zip(batch.z_0[i].flatten().tolist(), batch.eps[i].flatten().tolist(), strict=True)
        targets = [(signal * z_0 + noise * eps, eps if prediction == "eps" else signal * eps - noise * z_0)
                   for z_0, eps in values]  # fmt: skip
        errors.append([(z_t / 4 - target) ** 2 for z_t, target in targets])
    return errors


def quarter(prediction):
    """A model whose denoiser answers a quarter of z_t."""
    schedule = make_schedule(ScheduleConfig(prediction=prediction))
    controlnet = MagicMock(return_value=None)
    return SimpleNamespace(schedule=schedule, unet=lambda z_t, *_: z_t / 4, controlnet=controlnet)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("use_control", [False, True])
def test_the_target_is_the_one_that_the_model_predicts(batch, context, prediction, use_control):
    """DDPM Eq. 14, and the same of v (Progressive Distillation section 4)."""
    errors = [error for of_image in errors_by_image(batch, prediction) for error in of_image]
    loss, _ = ddpm_loss(quarter(prediction), batch, context, use_control)
    assert float(loss) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
def test_the_weight_of_a_noise_level_is_min_snr_gamma_over_the_error_that_z_0_has_in_the_target(gamma):
    """MinSNR section 3.4: min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v."""
    t = torch.tensor([0, 100, 300, 500, 999])
    of_eps, of_v = (min_snr_weight(make_schedule(ScheduleConfig(prediction=p)), t, gamma) for p in PREDICTIONS)
    assert of_eps.tolist() == pytest.approx([min(snr(i), gamma) / snr(i) for i in t.tolist()], rel=1e-6)
    assert of_v.tolist() == pytest.approx([min(snr(i), gamma) / (snr(i) + 1) for i in t.tolist()], rel=1e-6)


@pytest.mark.parametrize("use_control", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_weighted_loss_is_the_mean_of_weighted_images(batch, context, prediction, use_control):
    """MinSNR section 3.4, image by image; the three have an SNR of 1175, 0.38 and 0.005."""
    extra = {"eps": 0, "v": 1}[prediction]
    expected = 0.0
    for t, errors in zip(batch.t.tolist(), errors_by_image(batch, prediction), strict=True):
        expected += min(snr(t), 5.0) / (snr(t) + extra) * sum(errors) / len(errors) / 3
    loss, _ = ddpm_loss(quarter(prediction), batch, context, use_control, min_snr=5.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_gamma_above_every_snr_weighs_nothing_for_eps(batch, context):
    plain, _ = ddpm_loss(quarter("eps"), batch, context, use_control=False)
    weighted, _ = ddpm_loss(quarter("eps"), batch, context, use_control=False, min_snr=1e9)
    assert float(weighted) == pytest.approx(float(plain), rel=1e-6)


def test_the_control_stage_passes_noise_text_and_hint_to_the_controlnet_and_its_answer_to_the_unet(batch, context):
    """ControlNet Eq. 5."""
    seen = {}

    def controlnet(z_t, t, context, hint):
        seen.update(z_t=z_t, t=t, context=context, hint=hint)
        return "control"

    def unet(z_t, t, context, control):
        assert control == "control"
        assert torch.equal(z_t, seen["z_t"])
        return torch.zeros_like(z_t)

    controlnet.hint_of = lambda masks: 2 * masks
    model = SimpleNamespace(schedule=make_schedule(ScheduleConfig()), unet=unet, controlnet=controlnet)
    loss, _ = ddpm_loss(model, batch, context, use_control=True)
    assert float(loss) == pytest.approx(float((batch.eps.double() ** 2).mean()), rel=1e-6)
    assert torch.equal(seen["t"], batch.t)
    assert torch.equal(seen["hint"], 2 * batch.mask.float())
    assert torch.equal(seen["context"], context)


def test_in_the_control_stage_gradients_reach_the_controlnet_and_no_other_part(micro, batch, context):
    """ControlNet section 3.1: at first the zero convolutions alone learn; once they are not zero, all of it does."""
    model = random_model("micro", seed=0).requires_grad_(False)
    controlnet = model.add_controlnet().requires_grad_(True)
    for trained in (False, True):
        model.zero_grad()
        ddpm_loss(model, batch, context, use_control=True)[0].backward()
        moved = {
            name for name, p in controlnet.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0
        }
        assert any(name.startswith("zero_convs.") for name in moved)
        assert any(name.startswith("encoder.") for name in moved) == trained
        assert any(name.startswith("hint_network.") for name in moved) == trained
        others = [p for name, p in model.named_parameters() if not name.startswith("controlnet.")]
        assert all(p.grad is None for p in others)
        with torch.no_grad():
            for p in controlnet.parameters():
                p.add_(0.01)


def test_vae_loss_is_l1_plus_a_millionth_of_the_kl_per_pixel_value(micro):
    """LDM Eq. 25 without its perceptual and adversarial terms, in float64."""
    model = random_model("micro", seed=0).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(2, 4, 4, 4, generator=generator)
    model.vae.quant_conv.weight.mul_(8)  # so that mean and variance matter
    model.vae.quant_conv.bias.mul_(8)
    loss, extra = vae_loss(model, ImageBatch(x, noise, torch.empty(len(x), 0)))

    vae, x, noise = model.vae.double(), x.double(), noise.double()
    mean, logvar = vae.moments(x).split(4, dim=1)
    x_hat = vae.decoder(vae.post_quant_conv(mean + (logvar / 2).exp() * noise))
    kl = (mean.square() + logvar.exp() - logvar - 1).sum() / 2
    expected = (x_hat - x).abs().mean() + 1e-6 * kl / x.numel()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(extra["kl"]) == pytest.approx(float(kl / x.numel()), rel=1e-4)
    assert float(extra["mse"]) == pytest.approx(float((x_hat - x).square().mean()), rel=1e-4)


def test_the_weight_of_the_kl_is_visible_in_the_loss(micro):
    """With latents of log variance 20 the KL term is large enough to be measured on its own."""
    model = random_model("micro", seed=0).requires_grad_(False)
    model.vae.quant_conv.weight.zero_()
    model.vae.quant_conv.bias.copy_(torch.tensor([0.0] * 4 + [20.0] * 4))
    x, noise = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 4, 4)
    loss, _ = vae_loss(model, ImageBatch(x, noise, torch.empty(len(x), 0)))
    l1 = model.vae.decode_unscaled(noise).abs().mean()
    kl = 64 * 0.5 * (math.exp(20) - 1 - 20) / (3 * 16 * 16)
    assert float(loss - l1) == pytest.approx(1e-6 * kl, rel=1e-4)


def test_gradients_of_the_vae_loss_reach_every_weight_of_the_autoencoder(micro):
    model = random_model("micro", seed=0)
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)
    vae_loss(model, ImageBatch(x, noise, torch.empty(len(x), 0)))[0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.vae.parameters())
