"""The losses against sums in float64, and which weights they give gradients."""

import math
from types import SimpleNamespace

import pytest
import torch

from ldm_us.config import ScheduleConfig
from ldm_us.schedule import make_schedule
from ldm_us.training.batches import ImageBatch, LatentBatch
from ldm_us.training.losses import ddpm_loss, vae_loss
from ldm_us.training.start import random_model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    z_0, eps = (torch.randn(3, 4, 4, 4, generator=generator) for _ in range(2))
    hint = (torch.rand(3, 3, 16, 16, generator=generator) > 0.5).float()
    return LatentBatch(z_0, torch.tensor([0, 1, 2]), hint, torch.tensor([0, 500, 999]), eps)


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

    model = SimpleNamespace(schedule=make_schedule(ScheduleConfig()), unet=unet, controlnet=controlnet)
    loss, _ = ddpm_loss(model, batch, context, use_control=True)
    assert float(loss) == pytest.approx(float((batch.eps.double() ** 2).mean()), rel=1e-6)
    assert all(torch.equal(seen[name], value) for name, value in {"t": batch.t, "hint": batch.hint}.items())
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
    loss, extra = vae_loss(model, ImageBatch(x, noise))

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
    loss, _ = vae_loss(model, ImageBatch(x, noise))
    l1 = model.vae.decode_unscaled(noise).abs().mean()
    kl = 64 * 0.5 * (math.exp(20) - 1 - 20) / (3 * 16 * 16)
    assert float(loss - l1) == pytest.approx(1e-6 * kl, rel=1e-4)


def test_gradients_of_the_vae_loss_reach_every_weight_of_the_autoencoder(micro):
    model = random_model("micro", seed=0)
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)
    vae_loss(model, ImageBatch(x, noise))[0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.vae.parameters())
