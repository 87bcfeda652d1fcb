"""Controls: what one or several ControlNets add to the UNet, weighted, limited in time, added up.   arXiv 2302.05543.

Guess mode is that of the original code: the control acts with the prompt only, not without it, and its fine residuals
are weakened, so that the hint alone says what the picture shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import Schedule
from ldm_us.diffusion.model import LatentDiffusion, check_size, pixels_of
from ldm_us.networks.controlnet import ControlNet, hint_channels
from ldm_us.networks.unet import Control

GUESS_DECAY = 0.825  # from one residual to the next finer one; gradio_canny2image.py of lllyasviel/ControlNet
ROUNDING = 1e-9  # 15 / 50 >= 0.3, whatever the last bit says


@dataclass(frozen=True)
class ControlTerm:
    """One ControlNet and what it follows. Shares of the steps count from noise (0) to image (1)."""

    controlnet: ControlNet
    hint: Tensor  # (b, channels, H, W) in [0, 1]
    scale: float = 1.0
    start: float = 0.0  # share of the steps before the first one with control
    end: float = 1.0  # share of the steps up to the last one with control
    guess: bool = False

    def __post_init__(self) -> None:
        check_span(self.start, self.end)


class ReadyControl(NamedTuple):
    """A ControlTerm with everything computed that no step changes."""

    controlnet: ControlNet
    hint_features: Tensor  # (b, width, h, w)
    weights: tuple[float, ...]  # of the residuals, from fine to coarse, the middle last
    timesteps: frozenset[int] | None  # at which it acts; None: always
    guess: bool
    hint_shape: tuple[int, ...]  # (b, channels, H, W)


def check_span(start: float, end: float) -> None:
    """Refuse shares of the steps outside 0..1, and a start after the end."""
    if not 0.0 <= start <= 1.0 or not 0.0 <= end <= 1.0:
        raise ValueError(f"control from {start} to {end}: use shares of the steps, 0 to 1.")
    if start > end:
        raise ValueError(f"control starts at {start} of the steps, after its end at {end}: swap them.")


def check_hint(shape: tuple[int, ...], batch: int, size: tuple[int, int], channels: int) -> None:
    """Refuse hints of another shape than (b, channels, H, W)."""
    if shape != (batch, channels, *size):
        raise ValueError(f"a hint of shape {shape}: this batch needs {(batch, channels, *size)}.")


def check_batch(
    model: LatentDiffusion, batch: int, seeds: int, z_T: Tensor, masks: Tensor | None, controls: Sequence[ControlTerm]
) -> None:
    """Raise ValueError unless there is one of everything per sample and masks and hints fit the image."""
    for name, count in (("seeds", seeds), ("z_T", len(z_T))):
        if count != batch:
            raise ValueError(f"{count} {name} for {batch} prompts: give one per prompt.")
    size = pixels_of(model, z_T)
    for side in size:
        check_size(model.config, side)
    for term in controls:
        check_hint(tuple(term.hint.shape), batch, size, hint_channels(term.controlnet.config.hint))
    if masks is not None and tuple(masks.shape) != (batch, 1, *size):
        raise ValueError(f"masks of shape {tuple(masks.shape)}: this batch needs {(batch, 1, *size)}.")


def prepare_controls(terms: Sequence[ControlTerm], schedule: Schedule, steps: int) -> list[ReadyControl]:
    """Compute what does not change from step to step; terms of scale 0 are left out."""
    ready = []
    for term in terms:
        if term.scale == 0.0:
            continue
        weight = term.controlnet.hint_network.conv_out.weight
        features = term.controlnet.hint_network(term.hint.to(weight))
        residuals = len(term.controlnet.zero_convs) + 1
        timesteps = acting_timesteps(schedule, steps, term.start, term.end)
        weights = residual_weights(residuals, term.scale, term.guess)
        shape = tuple(term.hint.shape)
        ready.append(ReadyControl(term.controlnet, features, weights, timesteps, term.guess, shape))
    return ready


def residual_weights(count: int, scale: float, guess: bool) -> tuple[float, ...]:
    """Weights of `count` residuals, 13 for SD 1.5; in guess mode scale * 0.825^(12 - i) for residual i."""
    return tuple(scale * (GUESS_DECAY ** (count - 1 - i) if guess else 1.0) for i in range(count))


def acting_timesteps(schedule: Schedule, steps: int, start: float, end: float) -> frozenset[int] | None:
    """The timesteps of the steps that lie from share `start` to share `end`; None: all of them."""
    if start == 0.0 and end == 1.0:
        return None
    grid = [t for t, _ in ddim_timesteps(schedule, steps)]
    low, high = start - ROUNDING, end + ROUNDING
    return frozenset(t for i, t in enumerate(grid) if i / steps >= low and (i + 1) / steps <= high)


def add_controls(
    controls: Sequence[ReadyControl], z_t: Tensor, t: Tensor, context: Tensor, guided: bool
) -> Control | None:
    """Sum the residuals of all controls that act at t: (b, c, h, w), (b,), (b, m, d) -> Control, or None.

    guided: the batch holds the samples twice, without the prompt and then with it.
    """
    total: Control | None = None
    for control in controls:
        if control.timesteps is not None and int(t[0]) not in control.timesteps:
            continue
        skips, middle = weighted_residuals(control, z_t, t, context, guided)
        if total is not None:
            skips = [a + b for a, b in zip(total.skips, skips, strict=True)]
            middle = total.middle + middle
        total = Control(skips, middle)
    return total


def weighted_residuals(control: ReadyControl, z_t: Tensor, t: Tensor, context: Tensor, guided: bool) -> Control:
    """Residuals of one ControlNet times their weights; in guess mode 0 for the half without the prompt."""
    features = control.hint_features
    if guided and control.guess:
        z_t, t, context = (values.chunk(2)[1] for values in (z_t, t, context))
    elif guided:
        features = torch.cat([features, features])  # (b, width, h, w) -> (2b, width, h, w)
    skips, middle = control.controlnet(z_t, t, context, hint_features=features)
    residuals = [weight * each for weight, each in zip(control.weights, [*skips, middle], strict=True)]
    if guided and control.guess:
        residuals = [torch.cat([torch.zeros_like(each), each]) for each in residuals]
    return Control(residuals[:-1], residuals[-1])
