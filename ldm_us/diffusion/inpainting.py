"""Inpainting: draw a region anew and leave the rest of an image as it is.   Paper: arXiv 2201.09865 (RePaint).

After every step the known latents, noised to the level it reached, replace what the sampler made of them; the region
between them is sampled to fit (algorithm 1). Pixels outside are pasted back, so that the autoencoder does not touch
them either.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import Schedule, q_sample
from ldm_us.diffusion.editing import check_generators, encode_images
from ldm_us.diffusion.guidance import Conditions, check_latents
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import draw, start_from
from ldm_us.diffusion.sampling import Sampling, Step, decode, denoise_step, finished


@torch.no_grad()
def inpaint(
    model: LatentDiffusion,
    x: Tensor,
    region: Tensor,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    resample: int = 1,
    clean_level: float = 1.0,
) -> Iterator[Step]:
    """Draw images x (b, 3, H, W) in [-1, 1] anew where regions (b, 1, H, W) are 1: `composed` makes them of the last z.

    Each step is taken `resample` times, noised again in between, which fits the region better to its surroundings.
    A Step holds the known latents too, the last one what is decoded. clean_level: see `noise_again`.
    """
    check_region(x, region)
    if resample < 1:
        raise ValueError(f"resample {resample}: use 1 (each step once) or more.")
    z_0 = encode_images(model, x)
    check_latents(conditions, z_0)
    check_generators(generators, z_0)
    inside = region_of_latents(region, model.config.vae.downsampling).to(z_0)
    timesteps = ddim_timesteps(model.schedule, sampling.steps)
    noise = draw(z_0.shape, generators).to(z_0)
    start = start_from(model, noise, generators, sampling.steps, sampling.prior, conditions.prompts)
    z = replace_known(model.schedule, start, z_0, inside, timesteps[0][0], noise)

    for t, t_prev in timesteps:
        for again in reversed(range(resample)):
            step = denoise_step(model, z, t, t_prev, conditions, generators, sampling)
            if sampling.sampler == "ddpm" or sampling.eta > 0:  # at eta 0 one noise for all steps: see replace_known
                noise = draw(z.shape, generators).to(z)
            z = replace_known(model.schedule, step.z, z_0, inside, t_prev, noise)
            if again:
                z = noise_again(model.schedule, z, t_prev, t, draw(z.shape, generators).to(z), clean_level)
        yield step._replace(z=z)


@torch.no_grad()
def composed(
    model: LatentDiffusion,
    z_0: Tensor,
    x: Tensor,
    region: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    paste: bool = True,
) -> Tensor:
    """Finish inpainted latents z_0, outside the region with the pixels of x: -> images (b, 3, H, W) in [0, 1].

    Pixels outside are those of x, exactly; without `paste` those of its reconstruction, whose texture is that of the
    region, both without noise or grain: the decoder spreads a new latent beyond it.
    """
    inside = region.to(z_0) > 0
    if not paste:  # no texture either: known pixels stay as near to the image as the autoencoder has them
        return torch.where(inside, decode(model, z_0), decode(model, encode_images(model, x)))
    x_hat = finished(model, z_0, sampling, generators)
    return torch.where(inside, x_hat, (x / 2 + 0.5).to(x_hat))


def replace_known(schedule: Schedule, z: Tensor, z_0: Tensor, inside: Tensor, t: int, noise: Tensor) -> Tensor:
    """Latents at t (b, c, h, w) with those outside the region, `inside` (b, 1, h, w) = 0, taken from z_0; t < 0: clean.

    The noise is a new one each time, as the sampler's own is (RePaint algorithm 1, line 4). At eta 0 the sampler has
    none: there the noise is the same in every step, so that the known latents follow one way, as the sampled ones do.
    """
    known = z_0
    if t >= 0:
        known = q_sample(schedule, z_0, torch.full((len(z),), t, device=z.device), noise)  # RePaint Eq. 8
    return torch.where(inside > 0, z, known)  # RePaint Eq. 8


def noise_again(
    schedule: Schedule, z_prev: Tensor, t_prev: int, t: int, noise: Tensor, clean_level: float = 1.0
) -> Tensor:
    """z_{t_prev} -> z_t (b, c, h, w) by the noise between the two levels (RePaint algorithm 1, line 10).

    clean_level is the alpha_bar of latents at t_prev < 0: 1, for they hold no noise, whatever level DDIM lands on.
    """
    alpha_bar_prev = clean_level if t_prev < 0 else float(schedule.alpha_bar[t_prev])
    alpha = float(schedule.alpha_bar[t]) / alpha_bar_prev  # over the jump
    return alpha**0.5 * z_prev + (1 - alpha) ** 0.5 * noise  # DDPM Eq. 2


def region_of_latents(region: Tensor, downsampling: int) -> Tensor:
    """(b, 1, H, W) in {0, 1} -> (b, 1, h, w): the latents that have a pixel of the region in them."""
    return F.max_pool2d(region.float(), downsampling)


def check_region(x: Tensor, region: Tensor) -> None:
    """Raise ValueError unless there is a region of 0 and 1 for every image, and it is not empty."""
    expected = (len(x), 1, *x.shape[2:])
    if tuple(region.shape) != expected:
        raise ValueError(f"inpainting regions of shape {tuple(region.shape)}: these images need {expected}.")
    if not bool(((region == 0) | (region == 1)).all()):
        raise ValueError("inpainting regions hold other values than 0 and 1: draw them white on black.")
    empty = [i for i, each in enumerate(region) if not bool(each.any())]
    if empty:
        raise ValueError(f"inpainting region {empty[0]} is empty: nothing would change. Draw it white on black.")
