"""Classifier-free guidance (arXiv 2207.12598), rescaled (arXiv 2305.08891), limited to some noise levels (2404.07724).

The papers: Guidance, Rescale, and "Applying Guidance in a Limited Interval", whose w(sigma) is 1 outside the interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_us.diffusion.controls import ReadyControl, add_controls
from ldm_us.diffusion.ddpm import eps_of
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.schedule import Schedule
from ldm_us.networks.unet import Control

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (z_t, t) -> eps_hat


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


def guided_eps(
    model: LatentDiffusion,
    context: Tensor,
    context_negative: Tensor,
    guidance: Guidance,
    controls: Sequence[ReadyControl] = (),
) -> EpsModel:
    """eps_theta under guidance: one call of the UNet with both halves, or with the prompt's half alone.

    Where the network predicts v: v and eps differ by a term of z_t alone, so guidance is the same in either.
    """

    def predict(z_t: Tensor, t: Tensor, context: Tensor, control: Control | None) -> Tensor:
        return model.unet(z_t, t, context, control).float()

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        if not guides_at(guidance, model.schedule, t):
            return predict(z_t, t, context, add_controls(controls, z_t, t, context, guided=False))
        z_both, t_both = torch.cat([z_t, z_t]), torch.cat([t, t])
        both = torch.cat([context_negative, context])  # (b, n, d) x 2 -> (2b, n, d)
        control = add_controls(controls, z_both, t_both, both, guided=True)
        eps_u, eps_c = predict(z_both, t_both, both, control).chunk(2)
        eps_cfg = eps_u + guidance.scale * (eps_c - eps_u)  # Guidance Eq. 6, with s = 1 + w
        return eps_cfg if guidance.rescale == 0.0 else rescaled(eps_cfg, eps_c, guidance.rescale)

    def eps(z_t: Tensor, t: Tensor) -> Tensor:
        rounded = z_t.to(context.dtype)  # that of the weights; between model calls the latents stay in float32
        return eps_of(model.schedule, z_t, t, guided(rounded, t))

    return eps


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
    return ((1 - alpha_bar) / alpha_bar) ** 0.5
