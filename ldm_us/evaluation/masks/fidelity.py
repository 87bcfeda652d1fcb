"""Does a sample obey its mask? The asked mask is compared with the lesion that is found in the sample.

Beside it stand a floor, the same samples against each other's masks, and a ceiling, real images against their own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, load_pair, of_structure
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling
from ldm_us.evaluation.mask_errors import MaskErrors, mask_errors
from ldm_us.evaluation.masks.dark_lesion import dark_lesions
from ldm_us.evaluation.samples import draw_for_records

RULE, JUDGE = "dark-lesion rule", "judge"  # what finds lesions
FindLesions = Callable[[Tensor], Tensor]  # (n, 1, H, W) in [0, 1] -> (n, 1, H, W) in {0, 1}


class Fidelity(NamedTuple):
    """The errors of n samples and of the real images of their masks, and what they were measured on, (n, 1, H, W)."""

    true: MaskErrors  # against the mask it was asked to follow
    shuffled: MaskErrors  # against the mask of another sample
    real: MaskErrors  # of the real image that the mask was drawn on, against that mask
    samples: Tensor  # in [0, 1]
    real_images: Tensor  # in [0, 1]
    masks: Tensor  # in {0, 1}


def mask_fidelity(
    model: LatentDiffusion,
    records: Sequence[Record],
    sampling: Sampling,
    find: FindLesions = dark_lesions,
    seed: int = 0,
    batch: int = 8,
    framing: Framing | None = None,
    structure: str | None = None,
) -> Fidelity:
    """Sample one image per record, following its mask, and measure it. Masks are shuffled within each class.

    With a Framing samples are drawn in the aspects of their masks; all is compared on squares, each resized whole.
    structure: which of its masks is compared with what is found; None: all as one.
    """
    framing = framing or Framing(model.config.image_size)
    others = other_of_its_class([record.label for record in records])
    real_images, masks = load_batch(of_structure(records, structure), framing.side)
    real = mask_errors(find(real_images), masks)  # first: what cannot be found is said before the long sampling
    samples = draw_for_records(model, records, sampling, framing, seed, batch)
    found = find(samples)
    return Fidelity(mask_errors(found, masks), mask_errors(found, masks[others]), real, samples, real_images, masks)


def load_batch(records: Sequence[Record], size: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and their masks in {0, 1}, (b, 1, size, size) each."""
    pairs = [load_pair(record, size) for record in records]
    return torch.stack([x[:1] / 2 + 0.5 for x, _ in pairs]), torch.stack([mask for _, mask in pairs])


def other_of_its_class(labels: Sequence[str], groups: Sequence[str] | None = None) -> list[int]:
    """For each record another one of its class, half the class away: a permutation that leaves none in place.

    Within each class, because the classes' lesions differ in size. With groups, such as samples of one mask, the other
    one is of another group too.
    """
    groups = [str(i) for i in range(len(labels))] if groups is None else groups
    others = list(range(len(labels)))
    for label in sorted(set(labels)):
        members = [i for i, other in enumerate(labels) if other == label]
        if len(members) < 2:
            raise ValueError(
                f"1 {label} image with a lesion mask to measure: shuffling masks needs at least 2 a class."
            )
        first = {groups[i]: i for i in reversed(members)}
        members.sort(key=lambda i: first[groups[i]])  # whole groups in a row
        half = len(members) // 2
        largest = Counter(groups[i] for i in members).most_common(1)[0][1]
        if largest > half:
            raise ValueError(
                f"{largest} of the {len(members)} {label} images with a lesion mask have the same one: shuffling masks "
                "needs other masks for at least as many. Give samples of more masks."
            )
        for i, other in zip(members, [*members[half:], *members[:half]], strict=True):
            others[i] = other
    return others
