"""What a training step holds in memory, without taking it: the same calls on tensors that have shapes alone."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ldm_us.config import ModelConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.precision import HALF, cast_weights
from ldm_us.networks.recompute import set_recompute
from ldm_us.training.batches import ImageBatch, LatentBatch
from ldm_us.training.losses import ddpm_loss, vae_loss
from ldm_us.training.optimizers import EMA
from ldm_us.training.options import TrainOptions
from ldm_us.training.start import free_weights, needed_parts, trained_parameters


class Living(TorchDispatchMode):
    """Count the bytes of all tensors that are made inside and not yet deleted, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # of storages, by their address
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and take in the storages that are new."""
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, Tensor) and not value.is_meta:
                storage = value.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    self.peak = max(self.peak, self.bytes)
                    weakref.finalize(storage, self.forget, storage._cdata)
        return made

    def forget(self, storage: int) -> None:
        """Take out a storage that is deleted."""
        self.bytes -= self.sizes.pop(storage)


def peak_bytes(config: ModelConfig, options: TrainOptions) -> int:
    """The most memory that one process holds in a step: weights, their average, moments, gradients, activations.

    Not in it: what CUDA and its libraries need for themselves, --perceptual, --adversarial, previews, and that --shard
    splits weights. On a GPU attention is taken to be computed without its matrix, as on a CPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes seconds

    with torch.device("meta"):
        model = LatentDiffusion(config)
        if options.stage == "controlnet":
            model.add_controlnet()
    with FakeTensorMode(allow_non_fake_inputs=True), Living() as living:  # the schedule has numbers
        parts = [model.get_submodule(part) for part in needed_parts(options)]
        for part in parts:
            shapes = {name: torch.empty_like(value, device="cpu") for name, value in part.state_dict().items()}
            part.load_state_dict(shapes, assign=True)
            del shapes
        free_weights(model, options)
        for part in parts:
            norm_in_float32(part)
            if options.precision in HALF and options.weights is not None:
                cast_weights(part, options.precision)
            if options.gradient_checkpointing and part is not model.text:
                set_recompute(part, True)
        parameters = trained_parameters(model)
        kept = EMA(parameters, options.ema), [moments_like(each, options.optimizer) for each in parameters.values()]
        living.peak = living.bytes
        for _ in range(min(options.accumulate, 2)):  # from the second on there are gradients before
            with torch.autocast("cpu", HALF.get(options.precision), enabled=options.precision in HALF):
                loss = loss_of_shapes(model, options)
            loss.backward()
            del loss
        del kept
        return living.peak


def norm_in_float32(part: nn.Module) -> None:
    """Let layer norms see float32, as under autocast on a GPU and not on a CPU: what they keep is twice as large."""
    for module in part.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, seen: (seen[0].float(),))


def moments_like(parameter: nn.Parameter, optimizer: str) -> list[Tensor]:
    """Tensors of the size of what an optimizer keeps of a weight."""
    if optimizer == "adafactor" and parameter.ndim > 1:
        *rows, columns = parameter.shape
        return [torch.empty(*rows, 1), torch.empty(*rows[:-1], 1, columns)]
    dtype = torch.uint8 if optimizer == "adamw8bit" else torch.float32
    return [torch.empty(parameter.shape, dtype=dtype) for _ in range(1 if optimizer == "adafactor" else 2)]


def loss_of_shapes(model: LatentDiffusion, options: TrainOptions) -> Tensor:
    """The loss of a batch of the run's shapes."""
    config, images = model.config, options.images_at_once
    size = options.size or config.image_size
    side, channels = size // config.vae.downsampling, config.vae.latent_channels
    z = torch.empty(images, channels, side, side)
    if options.stage == "vae":
        noise = torch.empty(images, model.vae.noise_size(side, side))
        return vae_loss(model, ImageBatch(torch.empty(images, 3, size, size), z, noise))[0]
    tokens = config.text.chunks * config.text.length
    context = torch.empty(images, tokens, config.text.width)
    index = torch.zeros(images, dtype=torch.int64)
    if options.trains_text:
        context = model.text(torch.zeros(images, tokens, dtype=torch.int64))
    mask = torch.empty(images, 1, size, size, dtype=torch.bool)
    batch = LatentBatch(z, index, mask, index, z)
    return ddpm_loss(model, batch, context, options.stage == "controlnet", options.min_snr)[0]
