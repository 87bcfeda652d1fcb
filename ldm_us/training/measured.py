"""What a stage measures on its training images at its end, for sampling: the start prior and the grain.

python -m ldm_us.training prior --weights MODEL --data DIR --out FILE     # for a model that has none
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.config import LONGEST, LONGEST_TEXT
from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, framed, load_image
from ldm_us.diffusion.grain import FEWEST, SMALLEST, Grain, estimate_grain
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.start_prior import POOLED, estimate_priors
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.training.dataset import TrainingSet, to_signed
from ldm_us.training.reconstruction import reconstruct_grey

RANK = 20  # of the start prior: principal components of blurred latents
IMAGES = 60  # that the grain is measured on
PRIOR_IMAGES = 600  # that the start prior is measured on, with their mirror images where a run mirrors
OWN_IMAGES = 60  # of a prompt, so that it gets a start prior of its own


def set_measured(model: LatentDiffusion, data: TrainingSet, stage: str, decoder_only: bool, flip: bool) -> list[str]:
    """Measure what the stage has changed; -> a sentence for what cannot be measured on this data."""
    notes = []
    if stage == "vae":
        if not decoder_only:
            model.set_prior(None)  # it was that of other latents
        adds_noise = model.config.vae.noise_levels > 0  # a decoder that draws its own texture lacks no grain
        grain, found = (None, []) if adds_noise else grain_of(model, data)
        model.set_grain(grain)
        notes += found
    if stage == "unet" and not model.schedule.ends_in_noise:
        if shown_to_prior(len(data)):
            prompts = [data.prompts[i] for i in data.prompt_index[shown_to_prior(len(data))].tolist()]
            latents = latents_of(data, model.vae.scale, flip)
            own = members(prompts, RANK)
            times = len(latents) // len(prompts)  # an image, and its mirror image behind it
            own = {prompt: [times * i + j for i in index for j in range(times)] for prompt, index in own.items()}
            model.set_prior(estimate_priors(latents, RANK, own))
        else:
            kept = "there is none" if model.prior is None else "that of the start is kept"
            notes.append(f"no start prior is measured: it takes more than {RANK} images, not {len(data)}; {kept}.")
    return notes


def members(prompts: Sequence[str], rank: int) -> dict[str, list[int]]:
    """The images of each prompt that has enough of them for a start prior of its own, the most common prompts first.

    None where all images have one prompt. A prompt that the config of a model cannot hold gets none, and so do the
    least common ones where there are more than it holds.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        found[prompt].append(i)
    fewest = max(OWN_IMAGES, rank + 1)
    enough = [one for one, index in found.items() if len(index) >= fewest and 0 < len(one) <= LONGEST_TEXT]
    common = sorted(filter(str.isprintable, enough), key=lambda one: -len(found[one]))[:LONGEST]
    return {one: found[one] for one in common} if len(found) > 1 else {}


def shown_to_prior(images: int) -> list[int]:
    """The images that the start prior is measured on, from all over the data, however often a run was resumed.

    None of them where they are too few to tell its components.
    """
    return evenly(images, PRIOR_IMAGES) if images > RANK else []


def evenly(images: int, most: int) -> list[int]:
    """At most `most` of the numbers 0, 1, ..., images - 1, from all over them."""
    count = min(images, most)
    return [i * images // count for i in range(count)]


def latents_of(data: TrainingSet, scale: float, flip: bool) -> Tensor:
    """The mean latents (n, c, h, w) of these images, which must be encoded, and of their mirror images with --flip."""
    of_each = (data.moments[i][: 1 + flip] for i in shown_to_prior(len(data)))  # (1 or 2, 2c, h, w)
    return joined([posterior_from_moments(moments, scale).mean for moments in of_each])


def joined(latents: Sequence[Tensor]) -> Tensor:
    """Latents (k, c, h, w) one after the other; those of several sizes pooled, (n, c, 8, 8), as a prior is."""
    if len({one.shape[-2:] for one in latents}) > 1:
        latents = [F.adaptive_avg_pool2d(one.double(), POOLED) for one in latents]
    return torch.cat(list(latents))


def grain_of(model: LatentDiffusion, data: TrainingSet) -> tuple[Grain | None, list[str]]:
    """The grain that reconstructions of some training images lack; None, and why, where they are too small."""
    several = " of one size" * (len(data.members) > 1)
    data = data.of_each_size()[0]  # those of the most common size
    assert data.pixels is not None
    if len(data) < FEWEST:
        return None, [f"no grain is measured: that takes {FEWEST} images{several}, not {len(data)}."]
    if (side := min(data.frame(0).size)) < SMALLEST:
        return None, [f"no grain is measured: that takes images of {SMALLEST} pixels, not {side}."]
    index = torch.linspace(0, len(data) - 1, min(IMAGES, len(data))).long()
    x = to_signed(data.pixels[index])[:, :1] / 2 + 0.5
    return lost_grain(model, x), []


def lost_grain(model: LatentDiffusion, x: Tensor) -> Grain:
    """The grain that reconstructions of grey images (n, 1, H, W) in [0, 1] lack."""
    return estimate_grain([(each[0], reconstruct_grey(model, each[None])[0, 0]) for each in x])


@torch.no_grad()
def encode_records(model: LatentDiffusion, records: Sequence[Record], framing: Framing | None = None) -> Tensor:
    """Mean latents (n, c, h, w) of image files by a Framing, else squashed; those of several sizes are pooled."""
    framing = framing or Framing(model.config.image_size)
    images = (load_image(path, framed(path, framing))[None].to(model.device) for path in (r.image for r in records))
    return joined([model.vae.encode(x).mean.float().cpu() for x in images])
