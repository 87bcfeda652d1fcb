"""Classifier-free guidance (arXiv 2207.12598), rescaled (arXiv 2305.08891), limited to some noise levels (2404.07724).

The papers: Guidance, Rescale, and "Applying Guidance in a Limited Interval", whose w(sigma) is 1 outside the interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_us.diffusion.controls import ControlTerm, ReadyControl, add_controls, check_hint, prepare_controls
from ldm_us.diffusion.ddpm import Schedule
from ldm_us.diffusion.model import LatentDiffusion


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt counts, and where."""

    scale: float = 7.5  # s = 1 + w; 1 leaves the prompt alone, at half the cost
    rescale: float = 0.0  # phi: 0 plain guidance, 1 the standard deviation of the prediction with the prompt
    interval: tuple[float, float] | None = None  # noise levels sigma that are guided, least and largest; None: all

    def __post_init__(self) -> None:
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance rescale {self.rescale}: use 0 (plain guidance) to 1.")
        if self.interval is not None and not 0.0 <= self.interval[0] < self.interval[1]:
            low, high = self.interval
            raise ValueError(f"guidance interval {low} to {high}: give the smaller noise level first, from 0 up.")


@dataclass(frozen=True)
class Conditions:
    """What samples are to show and how strongly, with all computed that no step changes."""

    context: Tensor  # (b, n, d), text states of the prompts
    context_negative: Tensor  # (b, n, d), of what to steer away from
    guidance: Guidance
    controls: Sequence[ReadyControl] = ()
    prompts: Sequence[str] = ()  # what `context` is of


def prepare_conditions(
    model: LatentDiffusion,
    prompts: Sequence[str],
    negative_prompts: str | Sequence[str] = "",
    guidance: Guidance | None = None,
    controls: Sequence[ControlTerm] = (),
    steps: int = 50,
) -> Conditions:
    """Encode one prompt a sample, negative prompts (one for all, or one a sample) and hints (b, 3, H, W), once.

    Raise ValueError for another number of negative prompts.
    """
    guidance = guidance or Guidance()
    negative = [negative_prompts] * len(prompts) if isinstance(negative_prompts, str) else list(negative_prompts)
    if len(negative) != len(prompts):
        raise ValueError(f"{len(negative)} negative prompts for {len(prompts)} prompts: give one per prompt.")
    context = context_negative = model.encode_prompts(list(prompts))
    if guidance.scale != 1.0:
        context_negative = model.encode_prompts(negative)
    ready = prepare_controls(controls, model.schedule, steps)
    return Conditions(context, context_negative, guidance, ready, tuple(prompts))


def check_latents(conditions: Conditions, z: Tensor) -> None:
    """Raise ValueError unless latents (b, c, h, w) are as many as the prompts, and of the size of the hints."""
    batch = len(conditions.context)
    if len(z) != batch:
        raise ValueError(f"{len(z)} images or latents for {batch} prompts: give one per prompt.")
    for control in conditions.controls:
        f = control.hint_shape[2] // control.hint_features.shape[2]  # pixels per latent, along one side
        check_hint(control.hint_shape, batch, (z.shape[2] * f, z.shape[3] * f), control.hint_shape[1])


def guided_prediction(model: LatentDiffusion, z_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    """(b, c, h, w), (b,) -> eps_hat or v_hat (b, c, h, w): one call of the UNet with both halves, or with the prompt's.

    v and eps differ by a term of z_t alone, so guidance is the same in either, and written here as of eps. A rescale is
    not: it keeps the spread of the network's own answer, as in its paper, and v has another.
    """
    guidance, context = conditions.guidance, conditions.context
    z = z_t.to(context.dtype)  # that of the weights; between model calls the latents stay in float32
    if not guides_at(guidance, model.schedule, t):
        control = add_controls(conditions.controls, z, t, context, guided=False)
        return model.unet(z, t, context, control).to(z_t.dtype)

    z_both, t_both = torch.cat([z, z]), torch.cat([t, t])
    both = torch.cat([conditions.context_negative, context])  # (b, n, d) x 2 -> (2b, n, d)
    control = add_controls(conditions.controls, z_both, t_both, both, guided=True)
    eps_u, eps_c = model.unet(z_both, t_both, both, control).to(z_t.dtype).chunk(2)
    eps_cfg = eps_u + guidance.scale * (eps_c - eps_u)  # Guidance Eq. 6, with s = 1 + w
    if guidance.rescale != 0.0:
        eps_cfg = rescaled(eps_cfg, eps_c, guidance.rescale)
    return eps_cfg


def rescaled(eps_cfg: Tensor, eps_c: Tensor, rescale: float) -> Tensor:
    """Give a guided prediction back some of the spread that it had with the prompt alone, (b, c, h, w) each."""
    std_c, std_cfg = (each.std(dim=(1, 2, 3), keepdim=True) for each in (eps_c, eps_cfg))
    eps_rescaled = eps_cfg * (std_c / std_cfg)  # Rescale Eq. 15
    return rescale * eps_rescaled + (1 - rescale) * eps_cfg  # Rescale Eq. 16


def guides_at(guidance: Guidance, schedule: Schedule, t: Tensor) -> bool:
    """Whether guidance acts at t (b,); an interval takes the whole batch to be at one t."""
    if guidance.scale == 1.0 or guidance.interval is None:
        return guidance.scale != 1.0
    low, high = guidance.interval
    return low < noise_level(schedule, int(t[0])) <= high


def noise_level(schedule: Schedule, t: int) -> float:
    """sigma at t: the standard deviation of the noise in z_t / sqrt(alpha_bar)."""
    alpha_bar = float(schedule.alpha_bar[t])
    return ((1 - alpha_bar) / alpha_bar) ** 0.5 if alpha_bar > 0 else math.inf
