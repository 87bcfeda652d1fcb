"""Sampling: noise -> latents -> image, guided by text (arXiv 2207.12598) and by a mask (ControlNet).

One step: control from the mask -> eps_u + s (eps_c - eps_u) -> ddim_step or ddpm_step -> z_{t_prev}. A network that
predicts v is guided in v, and what comes out of that is turned into eps.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.config import ModelConfig
from ldm_us.ddim import ddim_step, ddim_timesteps
from ldm_us.ddpm import ddpm_step, eps_of, predict_z_0
from ldm_us.model import LatentDiffusion
from ldm_us.schedule import Schedule
from ldm_us.unet import Control

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (z_t, t) -> eps_hat
SAMPLERS = ("ddim", "ddpm")


class Step(NamedTuple):
    """What one step of the loop yields."""

    t: int  # the timestep that was just denoised
    z: Tensor  # (b, c, h, w), the latents after the step
    z_0_hat: Tensor  # (b, c, h, w), the clean latents as predicted before it


def denoise(
    eps_model: EpsModel,
    schedule: Schedule,
    z_T: Tensor,
    generators: list[torch.Generator],
    *,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Walk z_T (b, c, h, w) back to z_0, one model call a step; the last Step holds z_0.

    Each sample draws its noise from its own CPU generator, so that it does not depend on its batch.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}: use one of {', '.join(SAMPLERS)}.")
    if eta < 0:
        raise ValueError(f"eta {eta}: use 0 (deterministic) to 1 (the variance of DDPM).")
    z = z_T
    for t, t_prev in ddim_timesteps(schedule, steps):
        t_batch, t_prev_batch = (torch.full((len(z),), value, device=z.device) for value in (t, t_prev))
        eps_hat = eps_model(z, t_batch)
        z_0_hat = predict_z_0(schedule, z, t_batch, eps_hat)

        noise = draw(z.shape, generators).to(z) if sampler == "ddpm" or eta > 0 else None
        if sampler == "ddpm":
            z = ddpm_step(schedule, z, t_batch, t_prev_batch, eps_hat, noise)
        else:
            z = ddim_step(schedule, z, t_batch, t_prev_batch, eps_hat, eta, noise)
        yield Step(t, z, z_0_hat)


def guided_eps(
    model: LatentDiffusion,
    context: Tensor,
    context_negative: Tensor,
    guidance: float,
    hint: Tensor | None = None,
    control_scale: float = 1.0,
) -> EpsModel:
    """eps_theta under classifier-free guidance: s = `guidance`; s = 1 leaves the prompt alone, at half the cost.

    Where the network predicts v: v and eps differ by a term of z_t alone, so guidance is the same in either.
    """

    def predict(z_t: Tensor, t: Tensor, context: Tensor, hint: Tensor | None) -> Tensor:
        control = None
        if hint is not None and control_scale != 0.0:
            assert model.controlnet is not None
            skips, middle = model.controlnet(z_t, t, context, hint)
            control = Control([control_scale * skip for skip in skips], control_scale * middle)
        return model.unet(z_t, t, context, control).float()

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        if guidance == 1.0:
            return predict(z_t, t, context, hint)
        both = torch.cat([context_negative, context])  # (b, n, d) x 2 -> (2b, n, d)
        hints = None if hint is None else torch.cat([hint, hint])
        eps_u, eps_c = predict(torch.cat([z_t, z_t]), torch.cat([t, t]), both, hints).chunk(2)
        return eps_u + guidance * (eps_c - eps_u)  # Guidance Eq. 6, with s = 1 + w

    def eps(z_t: Tensor, t: Tensor) -> Tensor:
        rounded = z_t.to(context.dtype)  # that of the weights; between model calls the latents stay in float32
        return eps_of(model.schedule, z_t, t, guided(rounded, t))

    return eps


@torch.no_grad()
def generate(
    model: LatentDiffusion,
    prompts: list[str],
    *,
    negative_prompts: str | list[str] = "",
    masks: Tensor | None = None,
    seeds: list[int] | None = None,
    z_T: Tensor | None = None,
    size: int | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    guidance: float = 7.5,
    control_scale: float = 1.0,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Prompts -> images (b, 3, H, W) in [0, 1].

    masks (b, 1, H, W) in {0, 1} need a model with a ControlNet. z_T (b, c, h, w) sets the noise and the size, else
    one seed per sample sets the noise, and `size` the pixels of a side: by default those the model was made for.
    on_step sees every Step, for progress or strips.
    """
    batch = len(prompts)
    if batch == 0:
        raise ValueError("no prompts: give one per image.")
    seeds = list(range(batch)) if seeds is None else seeds
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * batch
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if z_T is None:
        z_T = draw((len(seeds), *latent_shape(model, size)), generators)
    check_batch(model, prompts, negative_prompts, masks, seeds, z_T)

    context = model.encode_prompts(prompts)
    context_negative = model.encode_prompts(negative_prompts) if guidance != 1.0 else context
    hint = None if masks is None else masks.to(context).expand(-1, 3, -1, -1)
    eps_model = guided_eps(model, context, context_negative, guidance, hint, control_scale)

    z = z_T.to(model.device, torch.float32)
    for step in denoise(eps_model, model.schedule, z, generators, sampler=sampler, steps=steps, eta=eta):
        z = step.z
        if on_step is not None:
            on_step(step)
    return (model.vae.decode(z.to(context.dtype)).float() / 2 + 0.5).clamp(0.0, 1.0)  # [-1, 1] -> [0, 1]


def draw(shape: torch.Size | tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """Standard normal noise (b, ...) float32 on the CPU, sample i from generator i."""
    assert len(generators) == shape[0]
    return torch.stack([torch.randn(tuple(shape[1:]), generator=generator) for generator in generators])


def latent_shape(model: LatentDiffusion, size: int | None) -> tuple[int, int, int]:
    """(c, h, w) of the latents of an image of `size` pixels a side."""
    size = model.config.image_size if size is None else size
    check_size(model.config, size)
    side = size // model.config.vae.downsampling
    return model.config.vae.latent_channels, side, side


def check_size(config: ModelConfig, size: int) -> None:
    """Refuse an image size that the networks cannot halve often enough."""
    if size < 1 or size % config.size_multiple != 0:
        raise ValueError(f"image size {size}: {config.name} needs a multiple of {config.size_multiple} pixels.")


def check_batch(
    model: LatentDiffusion,
    prompts: list[str],
    negative_prompts: list[str],
    masks: Tensor | None,
    seeds: list[int],
    z_T: Tensor,
) -> None:
    """Raise ValueError unless there is one of everything per sample and the masks fit the image."""
    batch = len(prompts)
    for name, values in (("negative prompts", negative_prompts), ("seeds", seeds), ("z_T", z_T)):
        if len(values) != batch:
            raise ValueError(f"{len(values)} {name} for {batch} prompts: give one per prompt.")
    h, w = z_T.shape[2:]
    f = model.config.vae.downsampling
    for side in (h * f, w * f):
        check_size(model.config, side)
    if masks is None:
        return
    if model.controlnet is None:
        raise ValueError("masks need a model with a ControlNet: train one with `train.py controlnet` first.")
    expected = (batch, 1, h * f, w * f)
    if tuple(masks.shape) != expected:
        raise ValueError(f"masks of shape {tuple(masks.shape)}: this batch needs {expected}.")
