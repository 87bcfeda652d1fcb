"""The loss of each stage, and of the warm-up of a text encoder.

Papers: arXiv 2112.10752 (LDM), 2006.11239 (DDPM), 2302.05543 (ControlNet), 2103.00020 (CLIP).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.diffusion.ddpm import Schedule, on_device, q_sample, target_of
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.clip import END_OF_TEXT, TextEncoder
from ldm_us.networks.vae import kl_to_standard_normal, posterior_from_moments
from ldm_us.training.adversary import Adversary
from ldm_us.training.batches import ImageBatch, LatentBatch, stream_generator
from ldm_us.training.perceptual import Perceptual

KL_WEIGHT = 1e-6  # LDM's kl-f8 autoencoder, with both terms summed over an image
WARMUP = 2  # stream of the run's seed that the warm-up of a text encoder draws from
WARMUP_LR = 1e-3
TEMPERATURE = 0.07  # where CLIP's starts (section 2.5)


def vae_loss(
    model: LatentDiffusion, batch: ImageBatch, perceptual: Perceptual | None = None, adversary: Adversary | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """|x - D(E(x))| + KL_WEIGHT * KL, per pixel value (LDM section 3.1 and appendix G), and LDM's other terms.

    Those are a perceptual distance and an adversary, which weighs itself against the errors that x_hat has else.
    """
    moments = model.vae.moments(batch.x).float()
    posterior = posterior_from_moments(moments, scale=1.0)
    x_hat = model.vae.decode_unscaled(posterior.mean + posterior.std * batch.noise, batch.decoder_noise).float()

    kl = kl_to_standard_normal(moments).mean() / batch.x[0].numel()
    extra = {"mse": F.mse_loss(x_hat.detach(), batch.x), "kl": kl.detach()}
    loss = F.l1_loss(x_hat, batch.x) + KL_WEIGHT * kl  # LDM Eq. 25
    errors = (x_hat - batch.x).abs().mean(dim=(1, 2, 3))  # (b,)
    if perceptual is not None:
        distance = perceptual.weight * perceptual.distance(x_hat, batch.x)
        loss, errors = loss + distance.mean(), errors + distance
        extra["perceptual"] = distance.detach().mean() / perceptual.weight
    if adversary is not None:
        term, figures = adversary.term(batch.x, x_hat, errors, model.vae.decoder.conv_out.weight)
        loss, extra = loss + term, extra | figures  # LDM Eq. 25
    return loss, extra


def ddpm_loss(
    model: LatentDiffusion, batch: LatentBatch, context: Tensor, use_control: bool, min_snr: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """E |eps - eps_theta(z_t, t, context[, hint])|^2, or the same of v where that is what the model predicts.

    context (b, n, d) is of the batch's prompts. With min_snr, each image's mean is weighted by min_snr_weight.
    """
    z_t = q_sample(model.schedule, batch.z_0, batch.t, batch.eps)  # DDPM Eq. 4
    control = None
    if use_control:
        assert model.controlnet is not None
        control = model.controlnet(z_t, batch.t, context, model.controlnet.hint_of(batch.mask.to(z_t.dtype)))
    prediction = model.unet(z_t, batch.t, context, control).float()
    target = target_of(model.schedule, batch.z_0, batch.t, batch.eps)
    if min_snr is None:
        return F.mse_loss(prediction, target), {}  # DDPM Eq. 14, LDM Eq. 3, ControlNet Eq. 5
    errors = (prediction - target).square().mean(dim=(1, 2, 3))  # (b, c, h, w) -> (b,)
    return (min_snr_weight(model.schedule, batch.t, min_snr) * errors).mean(), {}


def min_snr_weight(schedule: Schedule, t: Tensor, gamma: float) -> Tensor:
    """The weight of each image of a batch, (b,) -> (b,) float32: easy noise levels, of a high SNR, count less.

    In terms of z_0 it is min(SNR, gamma) for both targets; eps has an error of SNR, v one of SNR + 1 times that of z_0.
    Pure noise, where the SNR is 0, would weigh nothing; but sampling starts there, so v is learned at weight 1.
    Source: arXiv 2303.09556 (Min-SNR).
    """
    weights = min_snr_weights(schedule.alpha_bar, schedule.config.prediction, gamma)
    return on_device(weights, torch.float32, t.device)[t]


@lru_cache(maxsize=8)
def min_snr_weights(alpha_bar: Tensor, prediction: str, gamma: float) -> Tensor:
    """The same of all timesteps, (T,) -> (T,) float64 on the CPU."""
    snr = alpha_bar / (1 - alpha_bar)
    error_of_z_0 = snr if prediction == "eps" else snr + 1
    weight = snr.clamp(max=gamma) / error_of_z_0  # MinSNR section 3.4
    return torch.where(snr > 0, weight, 1.0)


def contrastive_loss(states: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """InfoNCE of CLIP, figure 3: each prompt's state must be nearest to another state of the same prompt.

    Two states of one prompt, taken at two positions after its end, stand for CLIP's pair of text and image.
    states (p, n, d), tokens (p, n) -> scalar.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    first, second = (F.normalize(states[rows, after_end(tokens, generator)], dim=-1) for _ in range(2))  # (p, d) each
    similarity = first @ second.T / TEMPERATURE
    return (F.cross_entropy(similarity, rows) + F.cross_entropy(similarity.T, rows)) / 2


def after_end(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """A random position (p,) of each prompt from its end of text on, padding included."""
    end = (tokens == END_OF_TEXT).int().argmax(dim=1)
    share = torch.rand(len(tokens), generator=generator).to(tokens.device)
    return end + (share * (tokens.shape[1] - end)).long()


def warm_up_text(text: TextEncoder, tokens: Tensor, steps: int, seed: int) -> None:
    """Teach a text encoder from random weights to tell the prompts `tokens` (p, n) apart, in place.

    CLIP learned its text states against images before LDM used them. A text encoder that nothing was taught gives the
    prompts of two classes nearly the same states, and the denoiser takes thousands of steps to notice a class word.
    """
    optimizer = torch.optim.AdamW(text.parameters(), lr=WARMUP_LR)
    generator = stream_generator(seed, WARMUP)
    for _ in range(steps):
        loss = contrastive_loss(text(tokens), tokens, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    text.zero_grad(set_to_none=True)
