"""A latent diffusion model from random numbers to pictures, in two minutes on two cores.   Paper: arXiv 2112.10752.

1. Phantoms: simulated breast ultrasound with a lesion in each.  2. An autoencoder learns to squeeze 64x64 pixels into
16x16 latents.  3. A denoiser learns to take noise off such latents.  4. Pure noise, denoised 50 times, is decoded.

    python examples/from_scratch.py        # prints the losses, and writes from_scratch.png
"""

import torch
import torch.nn.functional as F

import ldm_us
from ldm_us.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from ldm_us.data.phantom.simulate import simulate
from ldm_us.diffusion.ddpm import q_sample, target_of
from ldm_us.networks.vae import kl_to_standard_normal, posterior_from_moments

IMAGES = 400
VAE_STEPS, VAE_BATCH = 160, 8
UNET_STEPS, UNET_BATCH = 550, 16
SAMPLES, SAMPLING_STEPS = 8, 50
VAE = VAEConfig(width=16, multipliers=(1, 2, 4), res_blocks=1, groups=8)  # each level but the last halves the sides
TEXT = TextConfig(width=32, heads=4, layers=1, mlp_width=64)  # without it no denoiser; it says nothing here
UNET = UNetConfig(
    width=32, multipliers=(1, 2, 2), attention=(False, True, True), res_blocks=1, heads=4, context_width=32, groups=8
)
SCHEDULE = ScheduleConfig(guidance=1.0, prediction="v")  # no text to be guided by; v shows shapes sooner than eps
CONFIG = ModelConfig(name="scratch", image_size=64, schedule=SCHEDULE, vae=VAE, text=TEXT, unet=UNET)


def phantoms() -> torch.Tensor:
    """(n, 3, H, W) in [-1, 1]: benign and malignant in turns."""
    images = [simulate(0, i, ("benign", "malignant")[i % 2], CONFIG.image_size).image for i in range(IMAGES)]
    grey = torch.stack([torch.tensor(image) for image in images])  # (n, H, W)
    return (grey / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


def train(name, network, loss_of_a_batch, steps):
    """Follow the gradient, with a learning rate that rises and falls."""
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for step in range(1, steps + 1):
        loss = loss_of_a_batch()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 20 == 0:
            print(f"{name}, step {step}: loss {sum(losses[-20:]) / 20:.4f}")


def main() -> None:
    torch.manual_seed(0)
    model, images = ldm_us.LatentDiffusion(CONFIG), phantoms()

    def vae_loss() -> torch.Tensor:
        x = images[torch.randint(len(images), (VAE_BATCH,))]
        moments = model.vae.moments(x)  # E(x): mean and log variance of the latents
        x_hat = model.vae.decode_unscaled(posterior_from_moments(moments, scale=1.0).sample())  # D(z)
        return F.l1_loss(x_hat, x) + 1e-6 * kl_to_standard_normal(moments).mean() / x[0].numel()  # LDM Eq. 25

    train("autoencoder", model.vae, vae_loss, VAE_STEPS)
    with torch.no_grad():  # the latents of all images, scaled to a standard deviation of 1 (LDM appendix G)
        moments = torch.cat([model.vae.moments(x) for x in images.split(16)])
        model.set_latent_scale(1 / float(posterior_from_moments(moments, scale=1.0).sample().std()))
        context = model.encode_prompts([""] * UNET_BATCH)  # (b, 77, d): no text

    def unet_loss() -> torch.Tensor:
        z_0 = posterior_from_moments(moments[torch.randint(len(moments), (UNET_BATCH,))], model.vae.scale).sample()
        t, eps = torch.randint(model.schedule.timesteps, (UNET_BATCH,)), torch.randn(z_0.shape)
        z_t = q_sample(model.schedule, z_0, t, eps)  # DDPM Eq. 4
        return F.mse_loss(model.unet(z_t, t, context), target_of(model.schedule, z_0, t, eps))  # LDM Eq. 1

    train("denoiser", model.unet, unet_loss, UNET_STEPS)
    samples = ldm_us.generate(model, [""] * SAMPLES, sampling=ldm_us.Sampling(steps=SAMPLING_STEPS, threads=None))
    with torch.no_grad():
        kept = model.vae.decode(model.vae.encode(images[:SAMPLES]).mean)
    rows = [images[:SAMPLES] / 2 + 0.5, kept / 2 + 0.5, samples]
    ldm_us.to_picture(torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)).save("from_scratch.png")
    print("from_scratch.png: phantoms, what the autoencoder keeps of them, and samples")


if __name__ == "__main__":
    main()
