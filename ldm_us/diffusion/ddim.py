"""DDIM sampling: z_t -> z_{t_prev} in few steps, without retraining.   Paper: arXiv 2010.02502 (DDIM), Eq. 12 and 16.

The paper writes alpha for what DDPM, and all code here, calls alpha_bar.
"""

import torch
from torch import Tensor

from ldm_us.diffusion.ddpm import Schedule, eps_of, level, predict_z_0


def ddim_timesteps(schedule: Schedule, steps: int) -> list[tuple[int, int]]:
    """Exactly `steps` pairs (t, t_prev), from noise to image; the last t_prev is -1, "beyond the first".

    The grid is SD 1.5's, spaced by floor(T / steps) from schedule.config.first_timestep up: 50 steps of 1000 sample at
    981, 961, ..., 21, 1. Where that would leave out more than a twentieth of T at the noisy end (600 steps would start
    at 600) it is spaced by T / steps, rounded down one by one. A grid that would pass T - 1 (steps = T) begins as late
    as it can. A trailing grid starts at the noisiest timestep instead: 999, 979, ..., 19.
    """
    check_steps(schedule, steps)
    T = schedule.timesteps
    if schedule.config.spacing == "trailing":
        grid = [round(T - i * T / steps) - 1 for i in range(steps)]  # Rescale section 3.3
    else:
        whole = schedule.whole_spacing or T % steps <= T / 20
        above_first = [i * (T // steps) if whole else i * T // steps for i in reversed(range(steps))]
        first = min(schedule.config.first_timestep, T - 1 - above_first[0])
        grid = [first + above for above in above_first]
    return list(zip(grid, [*grid[1:], -1], strict=True))


def check_steps(schedule: Schedule, steps: int) -> None:
    """Refuse a number of sampling steps that the schedule does not have."""
    if not 1 <= steps <= schedule.timesteps:
        T = schedule.timesteps
        raise ValueError(f"{steps} sampling steps: the schedule has {T} timesteps. Use 1..{T} steps.")


def ddim_step(
    schedule: Schedule,
    z_t: Tensor,
    t: Tensor,
    t_prev: Tensor,
    prediction: Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One step z_t -> z_{t_prev}: (b, c, h, w), (b,), (b,), (b, c, h, w) -> (b, c, h, w).

    prediction is what the network of this schedule answered to z_t: the noise, or v. eta 0 is deterministic, eta 1 has
    the variance of DDPM's posterior; noise is needed where eta is not 0. t_prev = -1 lands on schedule.final_alpha_bar.
    """
    alpha_bar = level(schedule.alpha_bar, t, like=z_t)
    alpha_bar_prev = alpha_bar_or_final(schedule, t_prev, like=z_t)
    ratio = (1 - alpha_bar_prev) / (1 - alpha_bar)
    sigma = eta * (ratio * (1 - alpha_bar / alpha_bar_prev)).clamp(min=0).sqrt()  # DDIM Eq. 16

    z_0_hat = predict_z_0(schedule, z_t, t, prediction)  # DDIM Eq. 9
    eps_hat = eps_of(schedule, z_t, t, prediction)
    direction = (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt() * eps_hat
    z_prev = alpha_bar_prev.sqrt() * z_0_hat + direction  # DDIM Eq. 12, its first two terms
    if eta == 0.0:
        return z_prev
    assert noise is not None, "eta > 0 needs noise"
    return z_prev + sigma * noise  # DDIM Eq. 12, its third term


def ddim_invert_step(schedule: Schedule, z_prev: Tensor, t_prev: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
    """One step the other way, z_{t_prev} -> z_t, at eta 0, with a prediction taken at z_prev (DDIM Eq. 14, as an ODE).

    Where the network predicts v, a step turns z by an angle (Progressive Distillation appendix D): this turns it back.
    """
    alpha_bar = level(schedule.alpha_bar, t, like=z_prev)
    alpha_bar_prev = alpha_bar_or_final(schedule, t_prev, like=z_prev)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    signal_prev, noise_prev = alpha_bar_prev.sqrt(), (1 - alpha_bar_prev).sqrt()
    if schedule.config.prediction == "v":
        cos, sin = signal * signal_prev + noise * noise_prev, noise * signal_prev - signal * noise_prev
        return (z_prev + sin * prediction) / cos  # Progressive Distillation appendix D
    z_0_hat = (z_prev - noise_prev * prediction) / signal_prev
    return signal * z_0_hat + noise * prediction


def alpha_bar_or_final(schedule: Schedule, t: Tensor, like: Tensor) -> Tensor:
    """alpha_bar at t (b,), and that which the last step lands on where t is -1: -> (b, 1, 1, 1)."""
    final = torch.full_like(like[:, :1, :1, :1], schedule.final_alpha_bar)
    return torch.where(t.view(-1, 1, 1, 1) < 0, final, level(schedule.alpha_bar, t.clamp(min=0), like))
