"""Conditions: what samples are to show and how strongly, as one function of z_t and t that predicts the noise."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ldm_us.config import ModelConfig
from ldm_us.diffusion.controls import ControlTerm, prepare_controls
from ldm_us.diffusion.guidance import EpsModel, Guidance, guided_eps
from ldm_us.diffusion.model import LatentDiffusion


@dataclass(frozen=True)
class Conditions:
    """What samples are to show, one prompt a sample, and how strongly."""

    prompts: list[str]
    negative_prompts: str | list[str] = ""  # one for all, or one a sample
    guidance: Guidance = field(default_factory=Guidance)
    controls: Sequence[ControlTerm] = ()


def conditioned_eps(model: LatentDiffusion, conditions: Conditions, steps: int) -> EpsModel:
    """The noise prediction under these conditions; text states and hint features are computed here and not again."""
    negative = conditions.negative_prompts
    context = context_negative = model.encode_prompts(conditions.prompts)
    if conditions.guidance.scale != 1.0:
        context_negative = model.encode_prompts([negative] * len(context) if isinstance(negative, str) else negative)
    controls = prepare_controls(conditions.controls, model.schedule, steps)
    return guided_eps(model, context, context_negative, conditions.guidance, controls)


def check_conditions(model: LatentDiffusion, conditions: Conditions, z: Tensor) -> None:
    """Raise ValueError unless prompts and hints fit the latents (b, c, h, w)."""
    batch, negative = len(conditions.prompts), conditions.negative_prompts
    if not isinstance(negative, str) and len(negative) != batch:
        raise ValueError(f"{len(negative)} negative prompts for {batch} prompts: give one per prompt.")
    if len(z) != batch:
        raise ValueError(f"{len(z)} images or latents for {batch} prompts: give one per prompt.")
    size = pixels_of(model, z)
    for side in size:
        check_size(model.config, side)
    for term in conditions.controls:
        if tuple(term.hint.shape) != (batch, 3, *size):
            raise ValueError(f"a hint of shape {tuple(term.hint.shape)}: this batch needs {(batch, 3, *size)}.")


def pixels_of(model: LatentDiffusion, z: Tensor) -> tuple[int, int]:
    """Height and width of the image of latents (b, c, h, w)."""
    f = model.config.vae.downsampling
    return z.shape[2] * f, z.shape[3] * f


def check_size(config: ModelConfig, size: int) -> None:
    """Refuse an image size that the networks cannot halve often enough."""
    if size < 1 or size % config.size_multiple != 0:
        raise ValueError(f"image size {size}: {config.name} needs a multiple of {config.size_multiple} pixels.")
