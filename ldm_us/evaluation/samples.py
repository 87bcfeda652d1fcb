"""Draw the samples that are to be measured: grey, a batch at a time, sample i with seed + i."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate


def draw_samples(
    model: LatentDiffusion,
    prompts: Sequence[str],
    sampling: Sampling,
    seed: int = 0,
    batch: int = 8,
    masks: Tensor | None = None,
) -> Tensor:
    """n prompts, masks (n, 1, H, W) in {0, 1} or None -> (n, 1, H, W) in [0, 1] on the CPU."""
    chunks = []
    with tqdm(total=len(prompts), unit="image", desc="sampling", delay=0.1) as bar:
        for i in range(0, len(prompts), batch):
            chunk = prompts[i : i + batch]
            of_chunk = None if masks is None else masks[i : i + batch]
            seeds = range(seed + i, seed + i + len(chunk))
            images = generate(model, chunk, seeds=seeds, masks=of_chunk, sampling=sampling)
            chunks.append(images.mean(dim=1, keepdim=True).cpu())  # the three channels are one grey image
            bar.update(len(chunk))
    return torch.cat(chunks)
