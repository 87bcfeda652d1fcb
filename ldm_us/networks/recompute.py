"""Activation checkpointing: forget activations in the forward pass, compute them again in the backward pass.

Paper: arXiv 1604.06174, with the blocks of each level as its segments. One more forward pass buys the memory: between
the two passes a block holds its inputs alone. Training only; without gradients nothing is kept anyway.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same block, but where gradients are on it keeps its inputs alone."""
    if not torch.is_grad_enabled():
        return block
    # The variant that is not reentrant also reaches weights where no input needs a gradient, as with a LoRA. The blocks
    # draw no random numbers, so there is no state of a generator to restore.
    return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)


def set_recompute(module: nn.Module, on: bool) -> None:
    """Turn recomputing on or off in every part of `module` that offers it: levels and middles of UNet, ControlNet, VAE.

    No weight, no name and no output changes. Raise ValueError where no part offers it, as in the text encoder.
    """
    parts = [part for part in module.modules() if hasattr(part, "recompute")]
    if not parts:
        raise ValueError(f"{type(module).__name__} has no blocks to recompute: give a UNet, a ControlNet or a VAE.")
    for part in parts:
        part.recompute = on  # type: ignore[assignment]
