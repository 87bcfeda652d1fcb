"""Sampling: noise -> latents -> image, guided by text (arXiv 2207.12598) and by a mask (ControlNet).

One step: control from the mask -> eps_u + s (eps_c - eps_u) -> ddim_step or ddpm_step -> z_{t_prev}. A network that
predicts v is guided in v, and what comes out of that is turned into eps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.diffusion.conditions import Conditions, check_conditions, check_size, conditioned_eps, pixels_of
from ldm_us.diffusion.controls import ControlTerm, mask_hint
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import ddpm_step, predict_z_0
from ldm_us.diffusion.guidance import EpsModel, Guidance
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.schedule import Schedule

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
    start: int = 0,
) -> Iterator[Step]:
    """Walk z_T (b, c, h, w) back to z_0, one model call a step; the last Step holds z_0.

    Each sample draws its noise from its own CPU generator, so that it does not depend on its batch.
    start > 0 leaves out the first steps: z_T are then the latents at the timestep of step `start`.
    """
    check_sampler(sampler, eta)
    step_of = partial(denoise_step, eps_model, schedule, generators=generators, sampler=sampler, eta=eta)
    z = z_T
    for t, t_prev in ddim_timesteps(schedule, steps)[start:]:
        step = step_of(z, t, t_prev)
        z = step.z
        yield step


def denoise_step(
    eps_model: EpsModel,
    schedule: Schedule,
    z: Tensor,
    t: int,
    t_prev: int,
    *,
    generators: list[torch.Generator],
    sampler: str = "ddim",
    eta: float = 0.0,
) -> Step:
    """One model call and one step of the sampler, from z_t (b, c, h, w) to z_{t_prev}."""
    t_batch, t_prev_batch = (torch.full((len(z),), value, device=z.device) for value in (t, t_prev))
    eps_hat = eps_model(z, t_batch)
    z_0_hat = predict_z_0(schedule, z, t_batch, eps_hat)

    noise = draw(z.shape, generators).to(z) if sampler == "ddpm" or eta > 0 else None
    if sampler == "ddpm":
        z = ddpm_step(schedule, z, t_batch, t_prev_batch, eps_hat, noise)
    else:
        z = ddim_step(schedule, z, t_batch, t_prev_batch, eps_hat, eta, noise)
    return Step(t, z, z_0_hat)


def check_sampler(sampler: str, eta: float) -> None:
    """Refuse a sampler that there is not, and a negative eta."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}: use one of {', '.join(SAMPLERS)}.")
    if eta < 0:
        raise ValueError(f"eta {eta}: use 0 (deterministic) to 1 (the variance of DDPM).")


@dataclass(frozen=True)
class Walk:
    """How to get from noise to latents."""

    sampler: str = "ddim"  # of SAMPLERS
    steps: int = 50  # model calls
    eta: float = 0.0  # of ddim: 0 deterministic, 1 the variance of DDPM


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
    guidance: float | Guidance = 7.5,
    control_scale: float = 1.0,
    controls: Sequence[ControlTerm] = (),
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Prompts -> images (b, 3, H, W) in [0, 1].

    masks (b, 1, H, W) in {0, 1} need a model with a ControlNet; `controls` are ControlNets beside it. z_T (b, c, h, w)
    sets the noise and the size, else one seed per sample sets the noise, and `size` the pixels of a side: by default
    those the model was made for.
    on_step sees every Step, for progress or strips.
    """
    batch = len(prompts)
    if batch == 0:
        raise ValueError("no prompts: give one per image.")
    seeds = list(range(batch)) if seeds is None else seeds
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if z_T is None:
        z_T = draw((len(seeds), *latent_shape(model, size)), generators)
    check_batch(model, prompts, masks, seeds, z_T)

    if masks is not None:
        assert model.controlnet is not None
        controls = [ControlTerm(model.controlnet, mask_hint(masks), control_scale), *controls]
    strength = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    conditions = Conditions(prompts, negative_prompts, strength, controls)
    walk = Walk(sampler, steps, eta)
    return decode(model, sample_latents(model, z_T, conditions, generators, walk, on_step=on_step))


@torch.no_grad()
def sample_latents(
    model: LatentDiffusion,
    z_T: Tensor,
    conditions: Conditions,
    generators: list[torch.Generator],
    walk: Walk,
    *,
    start: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Walk z_T (b, c, h, w) back to z_0 under these conditions; `start` as in `denoise`."""
    check_conditions(model, conditions, z_T)
    eps_model = conditioned_eps(model, conditions, walk.steps)
    z = z_T.to(model.device, torch.float32)
    for step in denoise(
        eps_model, model.schedule, z, generators, sampler=walk.sampler, steps=walk.steps, eta=walk.eta, start=start
    ):
        z = step.z
        if on_step is not None:
            on_step(step)
    return z


@torch.no_grad()
def decode(model: LatentDiffusion, z_0: Tensor) -> Tensor:
    """Latents (b, c, h, w) -> images (b, 3, H, W) in [0, 1]."""
    weight = model.vae.post_quant_conv.weight
    return (model.vae.decode(z_0.to(weight)).float() / 2 + 0.5).clamp(0.0, 1.0)  # [-1, 1] -> [0, 1]


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


def check_batch(
    model: LatentDiffusion, prompts: list[str], masks: Tensor | None, seeds: list[int], z_T: Tensor
) -> None:
    """Raise ValueError unless there is one of everything per sample and the masks fit the image."""
    for name, values in (("seeds", seeds), ("z_T", z_T)):
        if len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} for {len(prompts)} prompts: give one per prompt.")
    if masks is None:
        return
    if model.controlnet is None:
        raise ValueError("masks need a model with a ControlNet: train one with `train.py controlnet` first.")
    expected = (len(prompts), 1, *pixels_of(model, z_T))
    if tuple(masks.shape) != expected:
        raise ValueError(f"masks of shape {tuple(masks.shape)}: this batch needs {expected}.")
