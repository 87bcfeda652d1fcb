"""One sample and one training step with every line written out: no generate, no denoise, no training loop.

The picture is that of this command, bit for bit:

    python sample.py --mask "docs/masks/benign (1)_mask.png" --n 1 --seed 3 --guidance 2 --sampler ddim --steps 25

    python examples/by_hand.py            # writes by_hand.png, and prints the loss of the training step
"""

from pathlib import Path

import torch

import ldm_us
from ldm_us.data.phantom.simulate import simulate
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import q_sample
from ldm_us.diffusion.grain import noise_shape
from ldm_us.diffusion.start_prior import start_latents
from ldm_us.networks.unet import Control

MASK = Path(__file__).parents[1] / "docs" / "masks" / "benign (1)_mask.png"
PROMPT = "Ultrasound image of a benign breast"
SEED, STEPS, GUIDANCE = 3, 25, 2.0


@torch.no_grad()
def sample(model: ldm_us.LatentDiffusion, mask: torch.Tensor) -> torch.Tensor:
    """mask (1, 1, H, W) in {0, 1} -> image (1, 3, H, W) in [0, 1]."""
    context = model.text(ldm_us.tokenize(["", PROMPT], model.config.text.length))  # without text and with: (2, 77, d)
    # What the mask says to the ControlNet is the same in every step: c_f = E(c_i), ControlNet Eq. 4.
    hint_features = model.controlnet.hint_network(mask.expand(-1, 3, -1, -1)).repeat(2, 1, 1, 1)

    # z_T: noise that still holds a blurred image, as in training: StartPrior Eq. 1.
    side, generator = model.config.image_size // model.config.vae.downsampling, torch.Generator().manual_seed(SEED)
    eps, w = torch.randn(1, 4, side, side, generator=generator), torch.randn(1, 20, generator=generator)
    timesteps = ddim_timesteps(model.schedule, STEPS)  # 961, 921, ..., 1
    z = start_latents(model.schedule, model.prior.of(PROMPT), torch.tensor([timesteps[0][0]]), eps, w)

    for t, t_prev in timesteps:
        z_both, t_both = torch.cat([z, z]), torch.tensor([t, t])
        # What the ControlNet adds to the UNet's skips and middle, times the weight of the mask: ControlNet Eq. 2.
        skips, middle = model.controlnet(z_both, t_both, context, hint_features=hint_features)
        scale = model.config.control.scale
        control = Control([scale * skip for skip in skips], scale * middle)

        # The noise in z_t, without and with the text, and further in the direction of the text: Guidance Eq. 6.
        eps_u, eps_c = model.unet(z_both, t_both, context, control).chunk(2)
        eps_hat = eps_u + GUIDANCE * (eps_c - eps_u)
        z = ddim_step(model.schedule, z, torch.tensor([t]), torch.tensor([t_prev]), eps_hat)  # DDIM Eq. 12, eta = 0

    x = (model.vae.decode(z) / 2 + 0.5).clamp(0, 1)  # x = D(z_0), LDM section 3.1
    return model.grain(x, torch.randn(noise_shape(x), generator=generator))  # speckle that D cannot draw: Grain Eq. 1


def training_step(model: ldm_us.LatentDiffusion) -> float:
    """Take one step with the ControlNet, the only part that ControlNet's paper trains; -> its loss before the step."""
    parameters = list(model.controlnet.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    generator = torch.Generator().manual_seed(SEED)

    phantom = simulate(seed=5, number=1, label="benign", size=model.config.image_size)
    x = torch.from_numpy(phantom.image / 127.5 - 1).float().expand(1, 3, -1, -1)  # in [-1, 1]
    hint = torch.from_numpy(phantom.masks[0]).float().expand(1, 3, -1, -1)

    with torch.no_grad():
        z_0 = model.vae.encode(x).sample(generator)  # LDM section 3.1
        context = model.encode_prompts([PROMPT])
    t = torch.randint(0, model.schedule.timesteps, (1,), generator=generator)
    eps = torch.randn(z_0.shape, generator=generator)
    z_t = q_sample(model.schedule, z_0, t, eps)  # DDPM Eq. 4

    eps_hat = model.unet(z_t, t, context, control=model.controlnet(z_t, t, context, hint))
    loss = (eps_hat - eps).square().mean()  # ControlNet Eq. 5
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def main() -> None:
    torch.set_num_threads(1)  # as sample.py: sums that are split among threads round differently
    model = ldm_us.load_model(ldm_us.BUNDLED)
    x = sample(model, ldm_us.load_mask([MASK], model.config.image_size)[None])
    ldm_us.to_picture(x[0].mean(dim=0, keepdim=True)).save("by_hand.png")  # the three channels are one grey image
    print(f"by_hand.png; loss of the training step: {training_step(model):.4f}")


if __name__ == "__main__":
    main()
