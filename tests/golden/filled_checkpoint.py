"""Write a Stable Diffusion 1.5 checkpoint of real size and original names, its weights filled by fill.py.

    python -m tests.golden.filled_checkpoint v1-5-filled.safetensors

It stands in for the real file where that is not at hand: sizes, names and memory are right, pictures are not.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from ldm_us.files.checkpoint import LazyTensor, write_safetensors
from tests.golden.fill import weight


def filled(key: str, shape: list[int]) -> torch.Tensor:
    """The tensor of one key."""
    return torch.from_numpy(weight(key, shape))


def main() -> None:
    """Write all 1,131 tensors, 4.3 GB, one at a time."""
    layouts = json.loads(Path(__file__).with_name("sd15_layouts.json").read_text())
    tensors = [
        LazyTensor(
            key,
            tuple(shape),
            torch.int64 if key.endswith("position_ids") else torch.float32,
            partial(filled, key, shape),
        )
        for key, shape in layouts["compvis_single_file"].items()
    ]
    write_safetensors(sys.argv[1], tensors, metadata={})


if __name__ == "__main__":
    main()
