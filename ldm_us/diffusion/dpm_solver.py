"""DPM-Solver++(2M): z_t -> z_{t_prev} in fewer steps than DDIM, by a memory of one step.   Paper: arXiv 2211.01095.

In the time lambda = log(signal / noise) the exact way from t to t_prev is an integral of z_0_hat along it. DDIM takes
z_0_hat as constant over a step; this solver continues the line through the last two of them.
"""

import torch
from torch import Tensor

from ldm_us.diffusion.ddim import alpha_bar_or_final
from ldm_us.diffusion.ddpm import Schedule, level, predict_z_0


def dpm_step(
    schedule: Schedule,
    z_t: Tensor,
    t: Tensor,
    t_prev: Tensor,
    prediction: Tensor,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """One step z_t -> z_{t_prev}: (b, c, h, w), (b,), (b,), (b, c, h, w) -> (b, c, h, w).

    prediction is what the network of this schedule answered to z_t: the noise, or v. `before` is the timestep (b,) of
    the step before and the z_0_hat (b, c, h, w) predicted there; without it this is DDIM's step at eta 0. Right also
    from alpha_bar = 0 and to alpha_bar = 1, where lambda is infinite.
    """
    alpha_bar, alpha_bar_prev = level(schedule.alpha_bar, t, like=z_t), alpha_bar_or_final(schedule, t_prev, like=z_t)
    ahead = z_0_hat = predict_z_0(schedule, z_t, t, prediction)
    if before is not None:
        t_before, z_0_before = before
        start = half_log_snr(level(schedule.alpha_bar, t_before, like=z_t))
        middle, end = half_log_snr(alpha_bar), half_log_snr(alpha_bar_prev)
        half = torch.where(end.isinf(), 0.0, (end - middle) / (2 * (middle - start)))  # 1 / (2 r); no line to infinity
        ahead = (1 + half) * z_0_hat - half * z_0_before  # DPMSolver algorithm 2, D
    noise_left = ((1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()  # sigma_prev / sigma_t
    signal_drawn = alpha_bar_prev.sqrt() - noise_left * alpha_bar.sqrt()  # alpha_prev (1 - e^-h)
    return noise_left * z_t + signal_drawn * ahead  # DPMSolver algorithm 2


def half_log_snr(alpha_bar: Tensor) -> Tensor:
    """lambda = log(signal / noise); minus infinity in pure noise, infinity where there is none."""
    return (alpha_bar / (1 - alpha_bar)).log() / 2
