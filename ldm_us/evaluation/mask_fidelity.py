"""Does a sample obey its mask? Dice between the asked mask and the lesion that is found in the sample.

Beside it stand a floor, the same samples against each other's masks, and a ceiling, real images against their own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.data.records import Record, load_pair
from ldm_us.evaluation.dark_lesion import dark_lesion
from ldm_us.evaluation.samples import SampleSettings, draw_samples
from ldm_us.model import LatentDiffusion
from ldm_us.sampling import Step

FindLesions = Callable[[Tensor], Tensor]  # (n, 1, H, W) in [0, 1] -> (n, 1, H, W) in {0, 1}


class Fidelity(NamedTuple):
    """Dice of each sample, (n,) each; and the images it was measured on, (n, 1, H, W) in [0, 1]."""

    true: Tensor  # against the mask it was asked to follow
    shuffled: Tensor  # against the mask of another sample
    real: Tensor  # of the real image that the mask was drawn on, against that mask
    samples: Tensor
    real_images: Tensor


def dice(found: Tensor, asked: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of each pair (n, 1, H, W) in {0, 1}: -> (n,); 1 where both are empty."""
    overlap = (found * asked).flatten(1).sum(1)
    total = (found + asked).flatten(1).sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))


def dark_lesions(images: Tensor) -> Tensor:
    """The dark lesion of every image, found by a rule: (n, 1, H, W) in [0, 1] -> (n, 1, H, W) in {0, 1}."""
    return torch.stack([dark_lesion(image) for image in images])


def mask_fidelity(
    model: LatentDiffusion,
    records: Sequence[Record],
    settings: SampleSettings,
    find: FindLesions = dark_lesions,
    on_step: Callable[[Step], None] | None = None,
) -> Fidelity:
    """Sample one image per record, following its mask, and measure it. Masks are shuffled within each class."""
    others = other_of_its_class([record.label for record in records])
    pairs = [load_pair(record, model.config.image_size) for record in records]
    real = torch.stack([x[:1] / 2 + 0.5 for x, _ in pairs])
    masks = torch.stack([mask for _, mask in pairs])
    samples = draw_samples(model, [record.prompt for record in records], settings, masks, on_step)
    found = find(samples)
    return Fidelity(dice(found, masks), dice(found, masks[others]), dice(find(real), masks), samples, real)


def other_of_its_class(labels: Sequence[str]) -> list[int]:
    """For each record another one of its class, half the class away: a permutation that leaves none in place.

    Within each class, because the classes' lesions differ in size.
    """
    others = list(range(len(labels)))
    for label in sorted(set(labels)):
        members = [i for i, other in enumerate(labels) if other == label]
        if len(members) < 2:
            raise ValueError(
                f"1 {label} image with a lesion mask to measure: shuffling masks needs at least 2 a class."
            )
        half = len(members) // 2
        for i, other in zip(members, [*members[half:], *members[:half]], strict=True):
            others[i] = other
    return others
