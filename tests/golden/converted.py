"""Tensors in memory, converted as weights_convert converts those of a file."""

from pathlib import Path

import torch

from ldm_us.files.checkpoint import lazy_tensors
from weights_convert.convert import load_piece, plan_source
from weights_convert.sources import Source


def source_from_state_dict(state_dict):
    """Look at tensors in memory as if they were a file; position_ids without numbers (on meta) count from 0."""
    counted = dict(state_dict)
    for name, value in state_dict.items():
        if value.is_meta and name.endswith("position_ids"):
            counted[name] = torch.arange(value.numel()).view(value.shape)
    return Source(Path("state dict"), (), {tensor.name: tensor for tensor in lazy_tensors(counted)})


def convert_state_dict(state_dict, config, ema=False):
    """Tensors in any known layout -> tensors in our names, of the parts that are there; each part must be complete."""
    plan = plan_source(source_from_state_dict(state_dict), config, ema=ema)
    return {piece.target: load_piece(piece) for piece in plan.pieces}
