"""The noise schedule of Stable Diffusion 1.5: beta, alpha, alpha_bar.   Paper: arXiv 2006.11239 (DDPM), section 2."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_us.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Noise levels for t = 0 .. T-1, each (T,) float64. t = 0 here is the paper's t = 1."""

    beta: Tensor
    alpha: Tensor
    alpha_bar: Tensor  # product of the alphas up to t: the share of signal variance left in z_t
    config: ScheduleConfig

    @property
    def timesteps(self) -> int:
        """T."""
        return self.config.timesteps

    @property
    def final_alpha_bar(self) -> float:
        """The noise level on which DDIM's last step lands."""
        return 1.0 if self.config.final_alpha_bar_one else float(self.alpha_bar[0])


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Build the schedule in float64: "scaled linear", which CompVis calls "linear"."""
    start, end = config.beta_start**0.5, config.beta_end**0.5
    # On the CPU even where load_model builds the modules on the meta device: nothing would fill these later.
    roots = torch.linspace(start, end, config.timesteps, dtype=torch.float64, device="cpu")
    beta = roots**2
    alpha = 1.0 - beta  # DDPM section 2, above Eq. 4
    alpha_bar = torch.cumprod(alpha, dim=0)
    return Schedule(beta, alpha, alpha_bar, config)


def level(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Look the values (T,) up at t (b,) and shape them to scale `like` (b, c, h, w): -> (b, 1, 1, 1)."""
    return values.to(like.device)[t].to(like.dtype).view(-1, 1, 1, 1)
