"""What networks compute in: float32, TF32, or half precision by autocast over weights that were cast once.

Autocast casts float32 weights in every call. Weights that were cast before are the same numbers, read in half the time.
"""

from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
from torch import nn

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of PRECISIONS


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, matrix products and convolutions are computed in one of PRECISIONS; norms and sums stay in float32.

    On a GPU fp32 is float32: PyTorch's own default is TF32 for convolutions. Both settings are as before after.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def cast_weights(module: nn.Module, precision: str, chosen: Container[str] | None = None) -> None:
    """Cast the frozen weights that autocast casts in every call, those of linear layers and convolutions, in place.

    Under autocast of this precision, bf16 or fp16, no bit of an output changes; a call of us128's UNet makes 77 copies
    instead of 299. `chosen` are the full names of the parameters that may be cast; None: all. Those that need a
    gradient stay in float32, as norms and embeddings do.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for full_name, parameter in layer.named_parameters(name, recurse=False):
                if not parameter.requires_grad and (chosen is None or full_name in chosen):
                    parameter.data = parameter.data.to(HALF[precision])
