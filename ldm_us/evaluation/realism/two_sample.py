"""The classifier two-sample test: can a network tell two sets of images apart?   Lopez-Paz and Oquab, arXiv 1610.06545.

Half of the images of both sets train it. On crops of the other half its AUC is 0.5 if the sets have one distribution,
and 1 if every crop gives its set away. The test does not know what to look for, and looks at the pixels themselves. So
it sees grain, where FID and KID with the features of a judge do not, for a judge is trained to look past blur. A
network so small and so briefly trained finds no subtle difference: an AUC of 0.5 is no proof that there is none.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch

from ldm_us.data.organ import UNKNOWN
from ldm_us.evaluation.auc import auc
from ldm_us.evaluation.difference import RESAMPLES
from ldm_us.evaluation.protocol.intervals import Measured as Resampled
from ldm_us.evaluation.protocol.intervals import auc_interval, count_families, group_weights
from ldm_us.evaluation.realism.crops import CROP, score_crops, train_network
from ldm_us.evaluation.realism.measures import Measured

STEPS = 800
FEWEST = 40  # images of each set: half of them is a half of the real set, of which 10 train and 10 test
MOST = 400  # images of each set that are looked at


class Shown(NamedTuple):
    """One image."""

    place: str  # in the order in which images are chosen: at random, but the same for files of one name
    label: str
    grey: np.ndarray  # (h, w), uint8, the same for all


def two_sample_tests(
    real: Measured, other: Measured, steps: int, seed: int, on_step: Callable[[], object] | None = None
) -> tuple[dict[str, Any], ...]:
    """Test real images against others, as many of each class, and one half of these real images against the other.

    Raise ValueError, in one sentence, for too few images.
    """
    smallest = np.min([grey.shape for grey in (*real.greys, *other.greys)], axis=0)
    first, second = equally_many(shown(real, seed, smallest), shown(other, seed, smallest))
    if len(first) < FEWEST:
        raise ValueError(f"it needs {FEWEST} images of each set, of the same classes, not {len(first)}.")
    return tuple(two_sample_test(*pair, steps, seed, on_step) for pair in ((first, second), halves(first)))


def shown(measured: Measured, seed: int, size: np.ndarray | None = None) -> list[Shown]:
    """The images of a set, or their middles of a size, in the order of a hash of their class and name."""
    greys = measured.greys if size is None else [middle(grey, *size) for grey in measured.greys]
    parts = zip(measured.names, measured.labels, greys, strict=True)
    return sorted(
        (Shown(sha256(f"{seed} {label} {name}".encode()).hexdigest(), label, grey) for name, label, grey in parts),
        key=lambda one: one.place,
    )


def middle(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle (height, width) of an image (h, w): images of several aspects, none of them stretched."""
    top, left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    return grey[top : top + height, left : left + width]


def equally_many(first: Sequence[Shown], second: Sequence[Shown]) -> tuple[list[Shown], list[Shown]]:
    """Leave as many images of each class in both sets; all are of one class where a class is unknown.

    Another mix of classes would be a difference.
    """
    if UNKNOWN in {one.label for one in (*first, *second)}:
        first, second = ([one._replace(label=UNKNOWN) for one in images] for images in (first, second))
    share = min(1.0, MOST / min(len(first), len(second)))
    kept: tuple[list[Shown], list[Shown]] = ([], [])
    for label in sorted({one.label for one in first}):
        members = [[one for one in images if one.label == label] for images in (first, second)]
        n = int(share * min(map(len, members)))
        for images, of_class in zip(kept, members, strict=True):
            images += of_class[:n]
    return kept


def halves(images: Sequence[Shown]) -> tuple[list[Shown], list[Shown]]:
    """Cut the images of each class in two: the first of them in one half, the last in the other."""
    cut: tuple[list[Shown], list[Shown]] = ([], [])
    for label in sorted({one.label for one in images}):
        members = sorted((one for one in images if one.label == label), key=lambda one: one.place)
        cut[0].extend(members[: len(members) // 2])
        cut[1].extend(members[len(members) // 2 :])
    return cut


def two_sample_test(
    first: Sequence[Shown],
    second: Sequence[Shown],
    steps: int,
    seed: int,
    on_step: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """The AUC with its 95 % interval, over the held-out images of both sets, and how many images there were of each.

    An image and its reconstruction have one name and are on one side. Intervals resample images, not crops.
    """
    training, held_out = zip(*(halves(images) for images in (first, second)), strict=True)
    greys = [
        [torch.from_numpy(np.stack([one.grey for one in images])) for images in side] for side in (training, held_out)
    ]
    network = train_network(greys[0][0], greys[0][1], steps, seed, on_step)
    scored = [score_crops(network, images) for images in greys[1]]
    if min(len(scores) for scores, _ in scored) == 0:
        raise ValueError(f"it found no crop of {CROP}x{CROP} pixels that is not black.")
    of_set = np.repeat([0, 1], [len(scores) for scores, _ in scored])
    groups = [f"{k} {image}" for k, (_, index) in enumerate(scored) for image in index]
    weights = group_weights(groups, of_set, RESAMPLES, seed)
    scores = [one for one, _ in scored]
    drawn = auc(scores[1], scores[0], weights[:, of_set == 1], weights[:, of_set == 0])
    found = Resampled(auc(scores[1], scores[0])[None], drawn[:, None])
    interval = auc_interval(found, count_families(groups, of_set))
    figures = {name: round(value, 4) for name, value in zip(("auc", "low", "high"), interval, strict=True)}
    return figures | {"trained_on": [len(one) for one in training], "tested_on": [len(one) for one in held_out]}
