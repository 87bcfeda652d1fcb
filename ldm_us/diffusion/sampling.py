"""Sampling: noise -> latents -> image, guided by text (arXiv 2207.12598) and by a mask (ControlNet).

One step: control from the mask -> eps_u + s (eps_c - eps_u) -> ddim_step or ddpm_step -> z_{t_prev}. `denoise` yields
every step, so that its caller looks, counts, saves and stops; `generate` walks it to the end.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_us.config import PRECISIONS, SAMPLERS, ModelConfig
from ldm_us.diffusion.controls import ControlTerm, check_batch, check_span
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import ddpm_step, predict_z_0
from ldm_us.diffusion.dpm_solver import dpm_step
from ldm_us.diffusion.guidance import Conditions, Guidance, check_latents, guided_prediction, prepare_conditions
from ldm_us.diffusion.model import LatentDiffusion, check_size
from ldm_us.diffusion.noise import decoder_noise, draw, generators_of, latent_shape, start_from, with_grain
from ldm_us.diffusion.tiles import PLACES, check_tile, decode_tiles
from ldm_us.networks.precision import computing_in

LARGEST = 1e6  # of a weight: beyond it nothing is a picture


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn. With weights, prompt, mask and seed it fixes every bit. None: the model's own value."""

    sampler: str = "ddim"  # of SAMPLERS
    steps: int = 50  # model calls a sample
    eta: float = 0.0  # of ddim: 0 deterministic, 1 the variance of DDPM
    guidance: float | None = None  # s = 1 + w, weight of the text; 1 leaves it alone, at half the cost
    guidance_rescale: float = 0.0  # phi, see Guidance
    guidance_interval: tuple[float, float] | None = None  # noise levels that are guided; None: all
    control_scale: float | None = None  # weight of the mask
    control_start: float = 0.0  # share of the steps, counted from noise, before the mask acts
    control_end: float = 1.0  # share of the steps until it does not
    guess: bool = False  # guess mode, see controls.py
    prior: bool = True  # start from the model's prior, where it has one; False: from N(0, I)
    grain: bool = True  # draw texture that latents do not hold: the model's grain, or its decoder's noise
    size: int | tuple[int, int] | None = None  # pixels: the side of a square, or (height, width)
    tile: int | None = None  # pixels along one side of what the autoencoder sees at a time; None: all
    precision: str = "fp32"  # of PRECISIONS; bf16 and fp16 by autocast
    threads: int | None = 1  # of the CPU; sums are split among them, which changes the last bits. None: as they are
    exact: bool = True  # one sample in a network call; False: a whole batch, and the last bits depend on it

    def __post_init__(self) -> None:
        for name, names in (("sampler", SAMPLERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} {getattr(self, name)!r}: use one of {', '.join(names)}.")
        if not 0 <= self.eta < LARGEST:
            raise ValueError(f"eta {self.eta}: use 0 (deterministic) to 1 (the variance of DDPM).")
        for name in ("guidance", "control_scale"):
            if getattr(self, name) is not None and not abs(getattr(self, name)) < LARGEST:
                raise ValueError(f"{name} {str(getattr(self, name))[:20]}: use a finite number.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads}: use 1 or more.")
        check_span(self.control_start, self.control_end)
        self.guided_by(1.0)

    def resolved(self, config: ModelConfig, masked: bool) -> "Sampling":
        """With the model's own values in place of None. Raise ValueError for a size that it cannot draw."""
        own: dict[str, Any] = {
            "guidance": config.guidance(masked),
            "control_scale": config.control.scale,
            "size": config.image_size,
        }
        check_size(config, config.image_size if self.size is None else self.size)
        check_tile(config, self.tile)
        return dataclasses.replace(self, **{name: own[name] for name in own if getattr(self, name) is None})

    def guided_by(self, scale: float) -> Guidance:
        """Its limits of guidance, with this scale."""
        return Guidance(scale, self.guidance_rescale, self.guidance_interval)

    def limited(self, term: ControlTerm) -> ControlTerm:
        """A control with its limits."""
        return dataclasses.replace(term, start=self.control_start, end=self.control_end, guess=self.guess)


class Step(NamedTuple):
    """What one step of the loop yields."""

    t: int  # the timestep that was just denoised; -1 where there was nothing to walk
    z: Tensor  # (b, c, h, w), the latents after the step
    z_0_hat: Tensor  # (b, c, h, w), the clean latents as predicted before it


@torch.no_grad()
def generate(
    model: LatentDiffusion,
    prompts: Sequence[str],
    negative_prompts: str | Sequence[str] = "",
    seeds: Sequence[int] | None = None,
    z_T: Tensor | None = None,
    masks: Tensor | None = None,
    sampling: Sampling | None = None,
    controls: Sequence[ControlTerm] = (),
) -> Tensor:
    """Prompts -> images (b, 3, H, W) in [0, 1].

    masks (b, 1, H, W) in {0, 1} need a model with a ControlNet; `controls` are ControlNets beside it. z_T (b, c, h, w)
    sets the start, as it is, and the size, else one seed per sample (0, 1, ...) sets the noise. Raise ValueError for
    what does not fit together.
    """
    batch = len(prompts)
    if batch == 0:
        raise ValueError("no prompts: give one per image.")
    sampling = (sampling or Sampling()).resolved(model.config, masked=masks is not None)
    generators = generators_of(range(batch) if seeds is None else seeds)
    shape = (len(generators), *latent_shape(model, sampling.size))
    start = torch.empty(shape, device="meta") if z_T is None else z_T
    check_batch(model, batch, len(generators), start, masks, controls)
    negative = [negative_prompts] * batch if isinstance(negative_prompts, str) else list(negative_prompts)
    if len(negative) != batch:
        raise ValueError(f"{len(negative)} negative prompts for {batch} prompts: give one per prompt.")

    images, together = [], 1 if sampling.exact else batch
    with computing(model, sampling) as model:
        for part in (slice(first, first + together) for first in range(0, batch, together)):
            of_part = None if masks is None else masks[part]
            terms = [dataclasses.replace(term, hint=term.hint[part]) for term in controls]
            conditions = conditions_of(model, prompts[part], sampling, negative[part], of_part, terms)
            drawn = draw_start(model, sampling, generators[part], prompts[part]) if z_T is None else z_T[part]
            start = drawn.to(model.device).float()
            *_, last = denoise(model, start, conditions, generators[part], sampling)
            images.append(finished(model, last.z, sampling, generators[part]))
    return torch.cat(images)


def draw_start(
    model: LatentDiffusion, sampling: Sampling, generators: Sequence[torch.Generator], prompts: Sequence[str]
) -> Tensor:
    """z_T (b, c, h, w) of prompts on the model's device, from noise of a resolved Sampling's size."""
    eps = draw((len(generators), *latent_shape(model, sampling.size)), generators).to(model.device)
    return start_from(model, eps, generators, sampling.steps, sampling.prior, prompts)


def finished(model: LatentDiffusion, z_0: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Decoded samples (b, 3, H, W) in [0, 1], with the decoder's noise and the grain of a model that has them."""
    adds_noise = sampling.grain and model.config.vae.noise_levels > 0
    noise = decoder_noise(model, z_0, generators) if adds_noise else None
    return with_grain(model, decode(model, z_0, noise), sampling.grain, generators)


def conditions_of(
    model: LatentDiffusion,
    prompts: Sequence[str],
    sampling: Sampling,
    negative_prompts: str | Sequence[str] = "",
    masks: Tensor | None = None,
    controls: Sequence[ControlTerm] = (),
) -> Conditions:
    """What samples are to show, under the limits of a resolved Sampling; masks (b, 1, H, W), `controls` as they are."""
    assert sampling.guidance is not None and sampling.control_scale is not None, "resolve it first"  # noqa: PT018
    if masks is not None:
        if model.controlnet is None:
            raise ValueError("masks need a model with a ControlNet: train one with `train.py controlnet` first.")
        term = ControlTerm(model.controlnet, model.controlnet.hint_of(masks), sampling.control_scale)
        controls = [sampling.limited(term), *controls]
    guidance = sampling.guided_by(sampling.guidance)
    return prepare_conditions(model, prompts, negative_prompts, guidance, controls, sampling.steps)


@torch.no_grad()
def denoise(
    model: LatentDiffusion,
    z_T: Tensor,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    start: int = 0,
) -> Iterator[Step]:
    """Walk z_T (b, c, h, w) back to z_0, one model call a step; the last Step holds z_0.

    Each sample draws its noise from its own CPU generator, so that it does not depend on its batch.
    start > 0 leaves out the first steps: z_T are then the latents at the timestep of step `start`.
    """
    check_latents(conditions, z_T)
    timesteps = ddim_timesteps(model.schedule, sampling.steps)[start:]
    if not timesteps:
        yield Step(-1, z_T, z_T)
    step = None
    for t, t_prev in timesteps:
        step = denoise_step(model, z_T if step is None else step.z, t, t_prev, conditions, generators, sampling, step)
        yield step


def denoise_step(
    model: LatentDiffusion,
    z: Tensor,
    t: int,
    t_prev: int,
    conditions: Conditions,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    before: Step | None = None,
) -> Step:
    """One model call and one step of the sampler, from z_t (b, c, h, w) to z_{t_prev}; dpm remembers the one before."""
    schedule = model.schedule
    t_batch, t_prev_batch = (torch.full((len(z),), value, device=z.device) for value in (t, t_prev))
    prediction = guided_prediction(model, z, t_batch, conditions)
    z_0_hat = predict_z_0(schedule, z, t_batch, prediction)

    noise = draw(z.shape, generators).to(z) if sampling.sampler == "ddpm" or sampling.eta > 0 else None
    if sampling.sampler == "ddpm":
        z = ddpm_step(schedule, z, t_batch, t_prev_batch, prediction, noise)
    elif sampling.sampler == "dpm":
        memory = None if before is None else (torch.full_like(t_batch, before.t), before.z_0_hat)
        z = dpm_step(schedule, z, t_batch, t_prev_batch, prediction, memory)
    else:
        z = ddim_step(schedule, z, t_batch, t_prev_batch, prediction, sampling.eta, noise)
    return Step(t, z, z_0_hat)


@torch.no_grad()
def decode(model: LatentDiffusion, z_0: Tensor, noise: Tensor | None = None) -> Tensor:
    """Latents (b, c, h, w), noise (b, N) or None for none -> images (b, 3, H, W) in [0, 1]."""
    slices = z_0.to(model.vae.post_quant_conv.weight).split(max(1, PLACES // z_0[0, 0].numel()))
    noises = [None] * len(slices) if noise is None else noise.split(len(slices[0]))
    pairs = zip(slices, noises, strict=True)
    x = torch.cat([model.vae.decode(*each) if model.tile is None else decode_tiles(model, *each) for each in pairs])
    if not bool(z_0.isfinite().all() and x.isfinite().all()):
        raise ValueError("a sample is not finite: its weights overflow. Try --precision fp32, or other weights.")
    return (x.float() / 2 + 0.5).clamp(0.0, 1.0)  # [-1, 1] -> [0, 1]


@contextmanager
def computing(model: LatentDiffusion, sampling: Sampling) -> Iterator[LatentDiffusion]:
    """Inside, networks compute in the precision and with the threads of a Sampling; -> the model with its timesteps.

    dpm has a trailing grid: it begins at the noisiest timestep, where few steps of a leading one begin far from noise.
    """
    before, model = torch.get_num_threads(), copy.copy(model)  # the networks are the same ones
    model.tile = sampling.tile
    if sampling.sampler == "dpm":
        trailing = dataclasses.replace(model.schedule.config, spacing="trailing")
        model.schedule = dataclasses.replace(model.schedule, config=trailing)
    torch.set_num_threads(sampling.threads or before)
    try:
        with computing_in(sampling.precision, model.device):
            yield model
    finally:
        torch.set_num_threads(before)
