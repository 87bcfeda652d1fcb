"""Does a sample obey its mask? Dice between the asked mask and the dark lesion that is found in the sample.

Beside it stand a floor, the same samples against each other's masks, and a ceiling, real images against their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_us.data.records import Record, load_pair
from ldm_us.evaluation.dark_lesion import dark_lesion
from ldm_us.model import LatentDiffusion
from ldm_us.sampling import Step, generate


@dataclass(frozen=True)
class Fidelity:
    """Dice of each sample: (n,) each."""

    true: Tensor  # against the mask it was asked to follow
    shuffled: Tensor  # against the mask of another sample
    real: Tensor  # of the real image that the mask was drawn on, against that mask


def dice(found: Tensor, asked: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of each pair (n, 1, H, W) in {0, 1}: -> (n,); 1 where both are empty."""
    overlap = (found * asked).flatten(1).sum(1)
    total = (found + asked).flatten(1).sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))


def mask_fidelity(
    model: LatentDiffusion,
    records: Sequence[Record],
    *,
    seed: int,
    steps: int,
    guidance: float,
    control_scale: float,
    batch: int,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[Fidelity, Tensor]:
    """Sample one image per record, following its mask: the Dice values, and the samples (n, 1, H, W) in [0, 1].

    Record i is sampled with seed + i. Masks are shuffled within each class, whose lesions differ in size.
    """
    others = other_of_its_class([record.label for record in records])
    pairs = [load_pair(record, model.config.image_size) for record in records]
    real = torch.stack([x[:1] / 2 + 0.5 for x, _ in pairs])
    masks = torch.stack([mask for _, mask in pairs])
    chunks = []
    for i in range(0, len(records), batch):
        chunk = records[i : i + batch]
        images = generate(
            model,
            [record.prompt for record in chunk],
            masks=masks[i : i + batch],
            seeds=list(range(seed + i, seed + i + len(chunk))),
            steps=steps,
            guidance=guidance,
            control_scale=control_scale,
            on_step=on_step,
        )
        chunks.append(images.mean(dim=1, keepdim=True).cpu())
    samples = torch.cat(chunks)
    found = torch.stack([dark_lesion(sample) for sample in samples])
    found_real = torch.stack([dark_lesion(image) for image in real])
    return Fidelity(dice(found, masks), dice(found, masks[others]), dice(found_real, masks)), samples


def other_of_its_class(labels: Sequence[str]) -> list[int]:
    """For each record another one of its class, half the class away: a permutation that leaves none in place."""
    others = list(range(len(labels)))
    for label in sorted(set(labels)):
        members = [i for i, other in enumerate(labels) if other == label]
        if len(members) < 2:
            raise ValueError(f"1 held-out {label} image with a lesion mask: shuffling masks needs at least 2 a class.")
        half = len(members) // 2
        for i, other in zip(members, [*members[half:], *members[:half]], strict=True):
            others[i] = other
    return others
