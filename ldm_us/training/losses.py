"""The loss of each stage.   Papers: arXiv 2112.10752 (LDM), 2006.11239 (DDPM), 2302.05543 (ControlNet)."""

import torch.nn.functional as F
from torch import Tensor

from ldm_us.ddpm import q_sample
from ldm_us.model import LatentDiffusion
from ldm_us.training.batches import ImageBatch, LatentBatch
from ldm_us.vae import kl_to_standard_normal, posterior_from_moments

KL_WEIGHT = 1e-6  # LDM's kl-f8 autoencoder, with both terms summed over an image


def vae_loss(model: LatentDiffusion, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """|x - D(E(x))| + KL_WEIGHT * KL, per pixel value (LDM section 3.1 and appendix G).

    LDM adds a perceptual and an adversarial term; both need networks of their own, and are left out here.
    """
    moments = model.vae.moments(batch.x).float()
    posterior = posterior_from_moments(moments, scale=1.0)
    x_hat = model.vae.decode_unscaled(posterior.mean + posterior.std * batch.noise).float()

    reconstruction = F.l1_loss(x_hat, batch.x)
    kl = kl_to_standard_normal(moments).mean() / batch.x[0].numel()
    mse = F.mse_loss(x_hat.detach(), batch.x)
    return reconstruction + KL_WEIGHT * kl, {"mse": mse, "kl": kl.detach()}  # LDM Eq. 25


def ddpm_loss(
    model: LatentDiffusion, batch: LatentBatch, context: Tensor, use_control: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """E |eps - eps_theta(z_t, t, context[, hint])|^2; context (b, n, d) is of the batch's prompts."""
    z_t = q_sample(model.schedule, batch.z_0, batch.t, batch.eps)  # DDPM Eq. 4
    control = None
    if use_control:
        assert model.controlnet is not None
        control = model.controlnet(z_t, batch.t, context, batch.hint)
    eps_hat = model.unet(z_t, batch.t, context, control)
    return F.mse_loss(eps_hat.float(), batch.eps), {}  # DDPM Eq. 14, LDM Eq. 3, ControlNet Eq. 5
