"""When a sample counts as a copy of a training image: thresholds with an expected rate of false alarms, and figures.

A threshold must be one that images which are no copies seldom pass. Such pairs come from the training images: each is
compared with the others, its whole near-duplicate family left out, as a held-out image is compared with all. There
are some nine times as many as held-out images, and these stay out of the thresholds: the rate of false alarms on them
is a measurement. One image of each family counts, because two of one family are not independent.

With m such scores the threshold is the k-th smallest, k = floor(r (m + 1)), and a smaller score is flagged: a new image
of the same kind is, with probability k / (m + 1) <= r at most (Vovk et al., "Algorithmic learning in a random world",
2005, section 2.2). No distribution is assumed, but k must be 1 or more, so that m has a least value. Three scores may
flag a sample; each has r = a third of the stated rate, so that all together keep it, however they depend on each other.
That rate is the expected one, a mean over calibrations: the rate of one score after this calibration is a draw from
Beta(k, m + 1 - k). With m = 400 and 3 % stated, k = 4, one calibration in 20 has 1.9 % and more for a score of 1 %.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_us.data.records import Record
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.figures import share_of, wilson_interval
from ldm_us.evaluation.memorisation.nearest_training import (
    NEIGHBOURS,
    SCORES,
    Described,
    Encode,
    Nearest,
    nearest_of_stream,
)

SURE = 0.95  # of calibrations
FALSE_ALARMS = 0.03  # expected, of all scores together
HELD_OUT_NEEDED = 20  # of 20 images without a false alarm the interval of the rate ends at 16 %, of 73 at 5 %


@dataclass(frozen=True)
class Thresholds:
    """Below which distance each of SCORES flags a sample, and what that rests on."""

    values: Tensor  # (scores,)
    pairs: int  # m, training images against all others, one of each family
    rank: int  # k
    false_alarms: float  # expected, of all scores together

    def flags(self, found: Nearest) -> Tensor:
        """Whether each score flags each image: (scores, b) bool."""
        return found.scores < self.values[:, None]

    def suspicion(self, found: Nearest) -> Tensor:
        """Divide every score by its threshold: (scores, b), below 1 where flagged."""
        return found.scores / self.values[:, None]


def families_needed(false_alarms: float) -> int:
    """How many families of training images a threshold needs: the least m with floor(r (m + 1)) >= 1."""
    return math.ceil(len(SCORES) / false_alarms) - 1


def check_enough_images(training: Sequence[Record], held_out: Sequence[Record], false_alarms: float) -> None:
    """Raise ValueError, saying how many are needed, for too few images to calibrate on or to measure the rate on."""
    families, needed = Counter(record.group for record in training), families_needed(false_alarms)
    largest = max(families.values(), default=0)
    if len(families) < needed:
        raise ValueError(
            f"--data: {len(families)} families of training images, but thresholds with {false_alarms:.0%} of false "
            f"alarms need {needed}. Give the whole training data, or a larger --false-alarms."
        )
    if len(training) - largest < NEIGHBOURS:
        raise ValueError(
            f"--data: {len(training)} training images, but every image is compared with {NEIGHBOURS} neighbours "
            f"outside its family of up to {largest}. Give at least {NEIGHBOURS + largest}."
        )
    if len(held_out) < HELD_OUT_NEEDED:
        raise ValueError(
            f"--data: {len(held_out)} held-out images, but measuring the false alarms needs {HELD_OUT_NEEDED}. "
            "Train with a larger --held-out."
        )


def calibrate(
    images: Iterable[Tensor], training: Described, encode: Encode, groups: Sequence[str], false_alarms: float
) -> Thresholds:
    """Compare the training images, in batches and in order, with those of other families, and take the thresholds."""
    _, first, family = np.unique(groups, return_index=True, return_inverse=True)
    found = nearest_of_stream(images, training, encode, torch.from_numpy(family[:, None] == family))
    rank = math.floor(false_alarms / len(SCORES) * (len(first) + 1) + 1e-9)
    assert rank >= 1, "check_enough_images"
    return Thresholds(found.scores[:, first].kthvalue(rank).values, len(first), rank, false_alarms)


def latent_features(model: LatentDiffusion) -> Encode:
    """Features of the model's own autoencoder: images (b, 1, H, W) in [0, 1] -> mean latents (b, c h w)."""

    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        signed = (2 * x - 1).expand(-1, 3, -1, -1).to(model.device)
        return model.vae.encode(signed).mean.flatten(1).float().cpu()

    return encode


def false_alarms_at_most(thresholds: Thresholds) -> float:
    """The rate that 95 of 100 calibrations stay below: the stated one is their mean, and one may be unlucky.

    Of the k-th smallest of m scores, the rate over new images is Beta(k, m + 1 - k) (Vovk, "Conditional validity of
    inductive conformal predictors", 2012, section 3). All scores together: the sum of the bounds of each, each of
    which fails a third as often.
    """
    from scipy.stats import beta

    chance = 1 - (1 - SURE) / len(SCORES)
    bound = len(SCORES) * beta.ppf(chance, thresholds.rank, thresholds.pairs + 1 - thresholds.rank)
    return min(1.0, float(bound))


def calibration_fields(thresholds: Thresholds) -> dict[str, Any]:
    """What the thresholds are and rest on."""
    return {
        "thresholds": {name: round(value, 6) for name, value in zip(SCORES, thresholds.values.tolist(), strict=True)},
        "pairs": thresholds.pairs,
        "rank": thresholds.rank,
        "expected_false_alarms": thresholds.false_alarms,
        "false_alarms_of_95_in_100_calibrations_at_most": round(false_alarms_at_most(thresholds), 4),
    }


def read_thresholds(report: Path) -> tuple[Thresholds, dict[str, Any]]:
    """The thresholds in a memorisation.json, and what it was made with. Raise ValueError for any other file."""
    try:
        fields = json.loads(report.read_text(encoding="utf-8"))
        kept = fields["calibration"]
        values = torch.tensor([float(kept["thresholds"][name]) for name in SCORES])
        rests_on = int(kept["pairs"]), int(kept["rank"]), float(kept["expected_false_alarms"])
        return Thresholds(values, *rests_on), dict(fields["compared"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{report}: no thresholds in it ({error!r}). Give the memorisation.json that `python -m ldm_us.evaluation "
            "memorisation --out FOLDER` wrote."
        ) from error


def shares(flags: Tensor) -> dict[str, dict[str, float]]:
    """The share that any score flags, and that each does, (scores, b) bool, with their 95 % intervals."""
    return {"any": share_of(flags.any(dim=0).tolist())} | dict(zip(SCORES, map(share_of, flags.tolist()), strict=True))


def difference_of_shares(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """The share of hits in the first less that in the second, with its 95 % interval.

    Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10: from Wilson's intervals of both, so that there is a
    width at shares of 0 and 1 too.
    """
    (p, low, high), (q, q_low, q_high) = (
        (sum(hits) / len(hits), *wilson_interval(sum(hits), len(hits))) for hits in (first, second)
    )
    bounds = p - q - math.hypot(p - low, q_high - q), p - q + math.hypot(high - p, q - q_low)
    return {name: round(value, 3) for name, value in zip(("difference", "low", "high"), (p - q, *bounds), strict=True)}


def count_copied(training: Sequence[Record], found: Nearest, thresholds: Thresholds) -> int:
    """How many different training images the flagged samples are copies of: of each the most suspicious one."""
    smallest = thresholds.suspicion(found).min(dim=0)
    nearest = found.image.gather(0, smallest.indices[None])[0]  # (scores, b) -> (b,)
    return len({training[i].image for i in nearest[smallest.values < 1].tolist()})


def held_out_fields(
    training: Sequence[Record], held_out: Sequence[Record], found: Nearest, thresholds: Thresholds
) -> dict[str, Any]:
    """The false alarms, and between which images: an auditor must see whether they are copies after all."""
    flags = thresholds.flags(found)
    pairs = [
        {"image": held_out[i].image.name, "score": SCORES[k], "nearest": training[int(found.image[k, i])].image.name}
        for i, k in flags.T.nonzero().tolist()
    ]
    return {"images": len(held_out), "false_alarms": shares(flags), "flagged_pairs": pairs}
