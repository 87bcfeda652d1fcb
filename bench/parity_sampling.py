"""Noise schedule, single steps of the samplers and whole samples against diffusers' schedulers and pipelines."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.parity_networks import Pair, normal, recorded
from bench.parity_table import Row, compare, now
from ldm_us.data.organ import BREAST
from ldm_us.diffusion.ddim import ddim_step, ddim_timesteps
from ldm_us.diffusion.ddpm import ddpm_step, q_sample, velocity
from ldm_us.diffusion.noise import latent_shape
from ldm_us.diffusion.sampling import Sampling, conditions_of, decode, denoise

GRIDS = (1, 7, 10, 20, 30, 50, 999)  # steps; at 1000 diffusers' grid leaves the schedule, ours does not
SMALL = 128  # pixels up to which every sampler walks a whole sample; they are the same code at every size
SEED = 5
GUIDANCE = 7.5


def compare_schedule(pair: Pair) -> Iterator[Row]:
    """Noise levels, the timesteps of grids of several lengths, and latents noised to three timesteps."""
    schedule, scheduler = pair.ours.schedule, pair.theirs.scheduler
    yield compare("alpha_bar", schedule.alpha_bar, scheduler.alphas_cumprod)
    for steps in GRIDS:
        grid = torch.tensor([t for t, _ in ddim_timesteps(schedule, steps)])
        scheduler.set_timesteps(steps)
        yield compare(f"timesteps, S = {steps}", grid, scheduler.timesteps)
    z_0, eps = normal(pair, 3, pair.latent_channels, 8, 8), normal(pair, 3, pair.latent_channels, 8, 8).flip(0)
    t = torch.tensor([0, 499, 999], device=z_0.device)
    yield compare("noised latents", q_sample(schedule, z_0, t, eps), scheduler.add_noise(z_0, eps, t))
    yield compare("v, the target", velocity(schedule, z_0, t, eps), scheduler.get_velocity(z_0, eps, t))


def compare_steps(pair: Pair) -> Iterator[Row]:
    """One step of each sampler from the same latents, prediction and noise: the first, the middle, the last of 20."""
    schedule, shape = pair.ours.schedule, (1, pair.latent_channels, 8, 8)
    z_t = normal(pair, *shape)
    prediction, noise = normal(pair, *shape).flip(-1), seeded_noise(shape).to(z_t)
    ddim, ddpm = pair.theirs.scheduler, ddpm_scheduler(pair)
    ddim.set_timesteps(20)
    ddpm.set_timesteps(20)
    for t, t_prev in [ddim_timesteps(schedule, 20)[i] for i in (0, 10, 19)]:
        t_batch, t_prev_batch = (torch.tensor([value], device=z_t.device) for value in (t, t_prev))
        for eta in (0.0, 1.0):
            ours = ddim_step(schedule, z_t, t_batch, t_prev_batch, prediction, eta, noise)
            theirs = ddim.step(prediction, t, z_t, eta=eta, variance_noise=noise if eta else None).prev_sample
            yield compare(f"DDIM step, eta {eta:g}, t = {t}", ours, theirs)
        ours = ddpm_step(schedule, z_t, t_batch, t_prev_batch, prediction, noise)
        theirs = ddpm.step(prediction, t, z_t, generator=seeded()).prev_sample
        yield compare(f"DDPM step, t = {t}", ours, theirs)


def ddpm_scheduler(pair: Pair) -> Any:
    """diffusers' ancestral sampler on the schedule of the exported folder, with the variance that ours has."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pair.theirs.scheduler.config, variance_type="fixed_small")


def seeded() -> torch.Generator:
    """A generator of the seed that both sides get."""
    return torch.Generator().manual_seed(SEED)


def seeded_noise(shape: tuple[int, ...]) -> Tensor:
    """What such a generator draws first."""
    return torch.randn(shape, generator=seeded())


@dataclass(frozen=True)
class Sample:
    """A whole sample to draw."""

    name: str
    steps: int
    size: int  # pixels of a side
    sampler: str = "ddim"
    eta: float = 0.0
    masked: bool = False
    prompt: str = BREAST.prompt("malignant")
    negative_prompt: str = "text, calipers"


@dataclass
class Trajectory:
    """A sample on its way."""

    predictions: list[Tensor] = field(default_factory=list)  # (2, c, h, w) of every step: without and with the prompt
    z: list[Tensor] = field(default_factory=list)  # (1, c, h, w) after every step
    stamps: list[float] = field(default_factory=list)  # seconds: the start, the end of every step, the end
    image: Tensor | None = None  # (1, 3, H, W) in [0, 1]

    def seconds(self, i: int) -> float:
        """What step i took; text and hint are in the first, and i = -1 is the decoder."""
        return self.stamps[i] - self.stamps[i - 1] if i < 0 else self.stamps[i + 1] - self.stamps[i]


def samples_of(pair: Pair, steps: int, size: int) -> list[Sample]:
    """Text to image and mask to image; the other samplers where they cost little."""
    samples = [Sample("text to image", steps, size)]
    if size <= SMALL:
        samples += [Sample("eta 1", steps, size, eta=1.0), Sample("DDPM", steps, size, sampler="ddpm")]
    if pair.ours.controlnet is not None:
        samples.append(Sample("mask to image", steps, size, masked=True))
    return samples


def compare_sample(pair: Pair, sample: Sample) -> Iterator[Row]:
    """Noise to picture, ours then theirs, through the public interface of each: every prediction and every z_t."""
    ours, theirs = our_trajectory(pair, sample), their_trajectory(pair, sample)
    grid = ddim_timesteps(pair.ours.schedule, sample.steps)
    steps = torch.tensor([[len(ours.predictions)], [len(theirs.predictions)]])
    yield compare(f"{sample.name}: calls of the UNet", *steps)
    for i, (t, t_prev) in enumerate(grid[: len(theirs.z)]):
        seconds = ours.seconds(i), theirs.seconds(i)
        yield compare(f"{sample.name}: UNet at t = {t}", ours.predictions[i], theirs.predictions[i])
        at = f"t = {t_prev}" if t_prev >= 0 else "the end"
        yield compare(f"{sample.name}: z_t at {at}", ours.z[i], theirs.z[i], seconds)
    yield compare(f"{sample.name}: picture", ours.image, theirs.image, (ours.seconds(-1), theirs.seconds(-1)))


def our_trajectory(pair: Pair, sample: Sample) -> Trajectory:
    """sampling.denoise, observed."""
    model, seen = pair.ours, Trajectory(stamps=[now()])

    sampling = Sampling(sample.sampler, sample.steps, sample.eta, GUIDANCE, threads=None)
    sampling = sampling.resolved(model.config, sample.masked)
    masks = ellipse(pair, sample.size) if sample.masked else None
    with recorded(model.unet) as seen.predictions, torch.no_grad():
        conditions = conditions_of(model, [sample.prompt], sampling, sample.negative_prompt, masks)
        for step in denoise(model, start(pair, sample), conditions, [seeded()], sampling):
            seen.z.append(step.z)
            seen.stamps.append(now())
        seen.image = decode(model, step.z)
    seen.stamps.append(now())
    return seen


def their_trajectory(pair: Pair, sample: Sample) -> Trajectory:
    """StableDiffusionPipeline or StableDiffusionControlNetPipeline, observed."""
    seen = Trajectory(stamps=[now()])

    def on_step(pipeline: Any, i: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.z.append(values["latents"])
        seen.stamps.append(now())
        return values

    control = {}
    if sample.masked:
        image = ellipse(pair, sample.size).expand(-1, 3, -1, -1)
        control = {"image": image, "controlnet_conditioning_scale": pair.ours.config.control.scale}
    with recorded(pair.theirs.unet) as seen.predictions:
        seen.image = their_pipeline(pair, sample)(
            prompt=sample.prompt,
            negative_prompt=sample.negative_prompt,
            height=sample.size,
            width=sample.size,
            generator=seeded(),
            latents=start(pair, sample).to(pair.theirs.unet.dtype),
            num_inference_steps=sample.steps,
            eta=sample.eta,
            guidance_scale=GUIDANCE,
            output_type="pt",
            callback_on_step_end=on_step,
            **control,
        ).images
    seen.stamps.append(now())
    return seen


def their_pipeline(pair: Pair, sample: Sample) -> Any:
    """The pipeline for a sample, of parts that are loaded already."""
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

    parts = pair.theirs.components | {"requires_safety_checker": False}
    parts |= {"scheduler": ddpm_scheduler(pair)} if sample.sampler == "ddpm" else {}
    if sample.masked:
        pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=pair.their_controlnet)
    else:
        pipeline = StableDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start(pair: Pair, sample: Sample) -> Tensor:
    """The noise that both sides start from, (1, c, h, w)."""
    return normal(pair, 1, *latent_shape(pair.ours, sample.size))


def ellipse(pair: Pair, size: int) -> Tensor:
    """A lesion left of the centre, as a mask (1, 1, size, size) in {0, 1}."""
    at = torch.arange(size, device=pair.ours.device) / size
    z, x = torch.meshgrid(at, at, indexing="ij")
    return ((z - 0.45) ** 2 / 0.15**2 + (x - 0.35) ** 2 / 0.2**2 < 1).float()[None, None]


def step_seconds(rows: list[Row], name: str) -> str:
    """How long a step of a sample took, the median; the first step is left out where there are more."""
    steps = [row.seconds for row in rows if row.what.startswith(f"{name}: z_t") and row.seconds is not None]
    ours, theirs = (statistics.median(side) for side in zip(*(steps[1:] or steps), strict=True))
    return f"{name}: a step took {ours:.3g} s here, {theirs:.3g} s in diffusers (median of {len(steps[1:] or steps)})"
