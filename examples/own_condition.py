"""A ControlNet that follows your own condition, not a mask: here a blurred picture.   Paper: arXiv 2302.05543.

The hint can be anything that can be computed from an image, or drawn by hand: change `hint_of` and nothing else.

    python examples/own_condition.py      # 3 minutes on two cores; writes own_condition.png and .safetensors
"""

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

import ldm_us
from ldm_us.data.organ import BREAST
from ldm_us.data.phantom.simulate import simulate
from ldm_us.data.records import image_tensor
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.ddpm import q_sample
from ldm_us.networks.vae import posterior_from_moments

IMAGES, BLUR = 240, 6.0  # pixels, of the Gaussian
STEPS, BATCH, LEARNING_RATE = 300, 8, 2e-3
SHOWN, SAMPLING_STEPS = 6, 25
CLASSES = ("benign", "malignant", "normal")


def hint_of(picture: Image.Image) -> torch.Tensor:
    """A picture -> what the ControlNet is shown of it, (3, H, W) in [0, 1]."""
    blurred = picture.filter(ImageFilter.GaussianBlur(BLUR))
    return image_tensor(blurred, picture.width) / 2 + 0.5


def dataset(seed: int, count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images (n, 3, H, W) in [-1, 1], their hints (n, 3, H, W) in [0, 1] and prompts."""
    labels = [CLASSES[i % len(CLASSES)] for i in range(count)]
    pictures = [Image.fromarray(simulate(seed, i, label, size).image) for i, label in enumerate(labels)]
    images = torch.stack([image_tensor(picture, size) for picture in pictures])
    return images, torch.stack([hint_of(picture) for picture in pictures]), [BREAST.prompt(label) for label in labels]


def train(model: ldm_us.LatentDiffusion, images: torch.Tensor, hints: torch.Tensor, prompts: list[str]) -> None:
    """Train the ControlNet alone: the model stays as it is, and keeps all that it knows."""
    with torch.no_grad():
        moments = torch.cat([model.vae.moments(x) for x in images.split(BATCH)])
        context = model.encode_prompts(prompts)
    parameters = list(model.controlnet.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, STEPS + 1):
        i = torch.randint(len(images), (BATCH,), generator=generator)
        z_0 = posterior_from_moments(moments[i], model.vae.scale).sample(generator)
        t = torch.randint(model.schedule.timesteps, (BATCH,), generator=generator)
        eps = torch.randn(z_0.shape, generator=generator)
        z_t = q_sample(model.schedule, z_0, t, eps)  # DDPM Eq. 4
        eps_hat = model.unet(z_t, t, context[i], model.controlnet(z_t, t, context[i], hints[i]))
        loss = F.mse_loss(eps_hat, eps)  # ControlNet Eq. 5
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss.detach()):.4f}")


def main() -> None:
    model = ldm_us.load_model(ldm_us.BUNDLED)
    model.add_controlnet()  # a fresh copy of the UNet's encoder: until it is trained it changes nothing
    size = model.config.image_size
    train(model, *dataset(0, IMAGES, size))
    ldm_us.save_model(model, "own_condition.safetensors")

    images, hints, prompts = dataset(1, SHOWN, size)  # breasts that it has not seen
    drawn = ldm_us.Sampling(steps=SAMPLING_STEPS, guidance=1.0)
    samples = ldm_us.generate(model, prompts, sampling=drawn, controls=[ControlTerm(model.controlnet, hints)])
    columns = [
        torch.cat([hint, sample, x / 2 + 0.5], dim=1) for hint, sample, x in zip(hints, samples, images, strict=True)
    ]
    ldm_us.to_picture(torch.cat(columns, dim=2)).save("own_condition.png")
    print("own_condition.png: hints, samples that follow them, and the phantoms that the hints were made of")


if __name__ == "__main__":
    main()
