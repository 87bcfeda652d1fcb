"""Training steps of one side, in a process of its own: two UNets with their moments do not fit beside each other.

Ours is the loss, the optimizer and the cache of train.py. diffusers' is the loop of its examples/text_to_image/
train_text_to_image.py, its LoRA variant and examples/controlnet/train_controlnet.py, which no package holds: AdamW as
torch has it by default. Neither side averages its weights.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.machine import peak_memory
from bench.speed.measuring import Call, flops_of, timed
from bench.speed.settings import Settings
from ldm_us.config import ModelConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model
from ldm_us.networks.lora import LoRAConfig, add_lora
from ldm_us.training.batches import LatentBatch
from ldm_us.training.losses import ddpm_loss
from ldm_us.training.optimizers import make_optimizer
from ldm_us.training.start import trained_parameters

STAGES = ("UNet", "ControlNet", "LoRA")
LR, WEIGHT_DECAY, CLIP, RANK = 1e-5, 1e-2, 1.0, 8
Loss = Callable[[LatentBatch, Tensor], Tensor]  # a batch and its text states -> scalar


def training_side(settings: Settings, side: str, stage: str) -> dict[str, Any]:
    """Seconds of the steps of each batch size, FLOP of one, and the most memory."""
    loss, parameters, networks = (our_stage if side == "ours" else their_stage)(settings, stage)
    optimizer = optimizer_of(side, parameters)
    found: dict[str, Any] = {"seconds": {}, "flops": {}, "weights": sum(p.nbytes for p in parameters)}
    for batch in settings.training_batches:
        inputs = fixed_batch(settings, batch)
        step = step_of(settings, loss, parameters, optimizer, lambda inputs=inputs: inputs)
        _, found["flops"][str(batch)] = flops_of(step)  # warms up, and counts before anything is compiled
        if settings.compiled:
            for network in networks:
                network.compile()
            step()
        found["seconds"][str(batch)] = [timed(step, settings.clock)[1] for _ in range(settings.turn_rounds)]
    return found | {"peak": peak_memory(settings.device)}


def step_of(
    settings: Settings,
    loss: Loss,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], tuple[LatentBatch, Tensor]],
) -> Call:
    """A whole training step: batch, loss, gradients, their norm, weights."""

    def step() -> None:
        half = settings.torch_dtype != torch.float32
        with torch.autocast(settings.device.split(":")[0], settings.torch_dtype, enabled=half):
            value = loss(*batches())
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def optimizer_of(side: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """That of train.py, and that of diffusers' scripts."""
    if side == "ours":
        return make_optimizer("adamw", parameters, LR, WEIGHT_DECAY)
    return torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY, eps=1e-8)


def our_stage(settings: Settings, stage: str) -> tuple[Loss, list[nn.Parameter], list[Any]]:
    """ddpm_loss of our model, with the weights free that the stage trains."""
    parts = ("unet", "controlnet") if stage == "ControlNet" else ("unet",)
    model = load_model(settings.weights, settings.device, parts=parts)
    if stage == "LoRA":
        add_lora(model, LoRAConfig(rank=RANK, alpha=RANK), torch.Generator().manual_seed(0))
    else:
        model.get_submodule("unet" if stage == "UNet" else "controlnet").requires_grad_(True)
    networks = [model.get_submodule(part) for part in parts]
    return our_loss(model, stage == "ControlNet"), list(trained_parameters(model).values()), networks


def our_loss(model: LatentDiffusion, control: bool) -> Loss:
    """The loss of train.py."""
    return lambda batch, context: ddpm_loss(model, batch, context, control)[0]


def their_stage(settings: Settings, stage: str) -> tuple[Loss, list[nn.Parameter], list[Any]]:
    """The loss of their scripts, with the same weights free; frozen ones are in the dtype of autocast, as there."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(settings.folder / "unet").to(settings.device).train()
    unet.requires_grad_(stage == "UNet")
    controlnet = None
    if stage == "LoRA":
        from peft import LoraConfig

        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        unet.to(settings.torch_dtype)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
        for parameter in unet.parameters():  # cast_training_params of their script
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    if stage == "ControlNet":
        unet.to(settings.torch_dtype)
        controlnet = ControlNetModel.from_pretrained(settings.folder / "controlnet").to(settings.device).train()
    networks = [unet] if controlnet is None else [unet, controlnet]
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    return their_loss(settings, unet, controlnet), trained, networks


def their_loss(settings: Settings, unet: Any, controlnet: Any) -> Loss:
    """Noise the latents, predict, compare: the body of their loop."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(settings.folder / "scheduler")

    def loss(batch: LatentBatch, context: Tensor) -> Tensor:
        z_t, control = scheduler.add_noise(batch.z_0, batch.eps, batch.t), {}
        if controlnet is not None:
            hint = batch.mask.to(z_t.dtype).expand(-1, 3, -1, -1)
            skips, middle = controlnet(z_t, batch.t, context, controlnet_cond=hint, return_dict=False)
            control = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        prediction = unet(z_t, batch.t, encoder_hidden_states=context, return_dict=False, **control)[0]
        return F.mse_loss(prediction.float(), batch.eps.float())

    return loss


def fixed_batch(settings: Settings, batch: int) -> tuple[LatentBatch, Tensor]:
    """Latents, noise, masks and text states of random numbers, the same for both sides."""
    config = config_of(settings.weights)
    side = settings.size // config.vae.downsampling
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, config.vae.latent_channels, side, side)
    z_0, eps = (torch.randn(shape, generator=generator) for _ in range(2))
    t = torch.randint(0, config.schedule.timesteps, (batch,), generator=generator)
    mask = torch.rand(batch, 1, settings.size, settings.size, generator=generator) < 0.5
    context = torch.randn(batch, config.text.length, config.unet.context_width, generator=generator)
    values = (z_0, torch.zeros(batch, dtype=torch.int64), mask, t, eps)
    return LatentBatch(*(value.to(settings.device) for value in values)), context.to(settings.device)


@cache
def config_of(weights: Path) -> ModelConfig:
    """The config of a model file."""
    return load_model(weights, parts=()).config
