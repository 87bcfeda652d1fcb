"""A ControlNet that was saved as its difference from a UNet, as AUTOMATIC1111's web UI and ComfyUI read it.

Such a file has the names of lllyasviel's and a tensor `difference`, which marks it. Of what a ControlNet copies from a
UNet (time embedding, encoder, middle) it holds W - W_unet; the UNet that it shall control is added to that. The hint
network and the zero convolutions are as they are. Sources: load_controlnet in comfy/controlnet.py of ComfyUI,
scripts/cldm.py of sd-webui-controlnet.
"""

from dataclasses import replace

import torch

from ldm_us.files.checkpoint import LazyTensor
from weights_convert.convert import Piece, Plan, load_piece

MARK = "difference"


def add_unet(plan: Plan, unet: dict[str, Piece]) -> Plan:
    """The plan of a file that may be such a difference, with the UNet added. `unet`: its pieces by target."""
    if MARK not in plan.ignored:
        return plan
    copied = {name.replace("unet.", "controlnet.", 1): piece for name, piece in unet.items()}
    return replace(
        plan,
        pieces=tuple(sum_of(piece, copied[piece.target]) if piece.target in copied else piece for piece in plan.pieces),
    )


def sum_of(piece: Piece, other: Piece) -> Piece:
    """The sum of two tensors of one shape, in the finer of their types."""
    dtype = torch.promote_types(piece.entry.dtype, other.entry.dtype)

    def load() -> torch.Tensor:
        return load_piece(piece).to(dtype) + load_piece(other).to(dtype)

    return replace(piece, entry=LazyTensor(piece.key, piece.shape, dtype, load), index=0, count=1)
