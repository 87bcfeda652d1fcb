"""Draw the samples that are to be measured: grey, a batch at a time, sample i with seed + i.

Samples that follow masks of several aspects are drawn in these and then brought to one square, as the real images are:
each is resized whole, so that a share, an overlap and a class are those of the picture; a length is not.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.framing import Framing, placed
from ldm_us.data.opening import open_image
from ldm_us.data.records import Record, followed, framed, load_mask
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


def draw_for_records(
    model: LatentDiffusion, records: Sequence[Record], sampling: Sampling, framing: Framing, seed: int, batch: int
) -> Tensor:
    """A sample that follows the mask of each record, in its aspect, as squares (n, 1, side, side) in [0, 1]."""
    frames = [framed(record.image, framing) for record in records]
    records = [followed(record, model.config.control.hint) for record in records]
    if len(set(frames)) == 1 and frames[0].size == (framing.side, framing.side):
        masks = torch.stack([load_mask(record.masks, frames[0]) for record in records])
        return draw_samples(model, [record.prompt for record in records], sampling, seed, batch, masks)
    squares = []
    for i, (record, frame) in enumerate(zip(records, frames, strict=True)):
        mask, of_size = load_mask(record.masks, frame)[None], replace(sampling, size=frame.plain)
        x = draw_samples(model, [record.prompt], of_size, seed + i, 1, mask)
        left, top, right, bottom = placed(frame, *open_image(record.image).size).place
        squares.append(squared(x[..., top:bottom, left:right], framing.side))
    return torch.cat(squares)


def squared(x: Tensor, side: int) -> Tensor:
    """Images (b, 1, H, W) in [0, 1], each resized whole to (side, side)."""
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
