"""DDIM inversion: image -> the noise from which sampling at eta 0 draws that image again.   DDIM (arXiv 2010.02502).

Following Eq. 14 towards noise takes eps_hat at z_{t_prev} in place of z_t, which is not known yet: an error in every
step. Iterating the step with eps_hat taken at its own result converges to the z_t from which `ddim_step` leads to
z_{t_prev} exactly (AIDI, arXiv 2309.04907; ReNoise, arXiv 2403.14602).
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ldm_us.config import ITERATIONS
from ldm_us.diffusion.ddim import ddim_invert_step, ddim_timesteps
from ldm_us.diffusion.editing import encode_images, first_step
from ldm_us.diffusion.guidance import Conditions, check_latents, guided_prediction
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, Step, denoise


@torch.no_grad()
def invert(
    model: LatentDiffusion,
    z_0: Tensor,
    conditions: Conditions,
    steps: int = 50,
    iterations: int = ITERATIONS,
    start: int = 0,
) -> Tensor:
    """Latents z_0 (b, c, h, w) -> z_T (b, c, h, w), from which `denoise` at eta 0 comes back to z_0.

    With start > 0 the way ends at the timestep of step `start`, from where `denoise` takes the same `start`.
    iterations = 0 is plain DDIM inversion. Guidance 1 is the safest: more of it makes each step a worse contraction.
    """
    check_latents(conditions, z_0)
    timesteps = ddim_timesteps(model.schedule, steps)[start:]
    if len(timesteps) == 1 and float(model.schedule.alpha_bar[timesteps[0][0]]) == 0:
        raise ValueError("inversion in one step to pure noise, which holds nothing of an image: use 2 steps or more.")
    z = z_0.to(model.device, torch.float32)
    for t, t_prev in reversed(timesteps):
        z = invert_step(model, z, t_prev, t, conditions, iterations)
    return z


def invert_step(
    model: LatentDiffusion, z_prev: Tensor, t_prev: int, t: int, conditions: Conditions, iterations: int
) -> Tensor:
    """z_{t_prev} -> z_t (b, c, h, w), the fixed point of the step with the prediction taken at z_t."""
    t_batch, t_prev_batch = (torch.full((len(z_prev),), value, device=z_prev.device) for value in (t, t_prev))
    z_t = z_prev
    for _ in range(iterations + 1):
        prediction = guided_prediction(model, z_t, t_batch, conditions)
        z_t = ddim_invert_step(model.schedule, z_prev, t_prev_batch, t_batch, prediction)
    return z_t


@torch.no_grad()
def edit_by_inversion(
    model: LatentDiffusion,
    x: Tensor,
    source: Conditions,
    target: Conditions,
    sampling: Sampling,
    strength: float = 1.0,
    iterations: int = ITERATIONS,
) -> Iterator[Step]:
    """Invert images x (b, 3, H, W) in [-1, 1] as `source` describes them, walk back as `target` does, at eta 0.

    Another prompt changes the class, another hint of a ControlNet moves or grows the lesion. strength < 1 inverts that
    share of the steps only, and keeps more of x.

    A ControlNet that is to change x, and did not draw it, belongs into `target` alone. In both it would do nothing: the
    noise is the one from which `source` draws x, so that equal conditions give x back.
    """
    start = first_step(strength, sampling.steps)
    z = invert(model, encode_images(model, x), source, sampling.steps, iterations, start)
    yield from denoise(model, z, target, [], dataclasses.replace(sampling, sampler="ddim", eta=0.0), start)
