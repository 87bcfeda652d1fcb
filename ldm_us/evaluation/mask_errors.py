"""How far a found lesion is from the asked one: overlap, area and place. Several lesions of one mask are their union.

Dice says that something is wrong, area error and centroid offset say what: a lesion that is too small, or elsewhere.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class MaskErrors(NamedTuple):
    """One value for each of n pairs of masks, (n,) each."""

    dice: Tensor
    area_error: Tensor  # (found - asked) / asked, in pixels of area: -1 where nothing was found
    offset: Tensor  # pixels from the centroid of what was asked to that of what was found; nan where nothing was
    asked_area: Tensor  # pixels

    @property
    def nothing_found(self) -> Tensor:
        """Where no pixel was found: (n,) bool."""
        return self.offset.isnan()

    @property
    def offset_in_diameters(self) -> Tensor:
        """The offset over the diameter of a disc with the area of the asked lesion."""
        return self.offset / (2 * (self.asked_area / math.pi).sqrt())


def mask_errors(found: Tensor, asked: Tensor) -> MaskErrors:
    """Compare masks (n, 1, H, W) in {0, 1}, pair by pair; no asked mask is empty."""
    area, asked_area = found.flatten(1).sum(1), asked.flatten(1).sum(1)
    assert bool((asked_area > 0).all()), "an empty mask asks for no lesion"
    offset = torch.linalg.vector_norm(centroids(found) - centroids(asked), dim=1)
    return MaskErrors(dice(found, asked), (area - asked_area) / asked_area, offset, asked_area)


def dice(found: Tensor, asked: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of each pair (n, 1, H, W) in {0, 1}: -> (n,); 1 where both are empty."""
    overlap = (found * asked).flatten(1).sum(1)
    total = (found + asked).flatten(1).sum(1)
    return torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(total))


def centroids(masks: Tensor) -> Tensor:
    """The mean place (down, across) in pixels of each mask (n, 1, H, W) in {0, 1}: -> (n, 2); nan where it is empty."""
    h, w = masks.shape[-2:]
    area = masks.flatten(1).sum(1)
    down = (masks.sum(dim=(1, 3)) * torch.arange(h, device=masks.device)).sum(1)  # (n, H) -> (n,)
    across = (masks.sum(dim=(1, 2)) * torch.arange(w, device=masks.device)).sum(1)
    return torch.stack([down, across], dim=1) / area[:, None]


def joined(parts: list[MaskErrors]) -> MaskErrors:
    """The errors of several batches as one."""
    return MaskErrors(*(torch.cat(values) for values in zip(*parts, strict=True)))
