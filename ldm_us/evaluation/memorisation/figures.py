"""What an audit for copies says beside the shares it flags: originals, false alarms, and how far these may be off."""

import math
from collections.abc import Sequence
from typing import Any

from ldm_us.data.records import Record
from ldm_us.evaluation.figures import share_of, wilson_interval
from ldm_us.evaluation.memorisation.nearest_training import SCORES, Nearest
from ldm_us.evaluation.memorisation.thresholds import Thresholds

SURE = 0.95  # of calibrations


def count_copied(training: Sequence[Record], found: Nearest, thresholds: Thresholds) -> int:
    """How many different training images the flagged samples are copies of: of each the most suspicious one."""
    smallest = thresholds.suspicion(found).min(dim=0)
    originals = [
        training[int(found.index[SCORES[name]][i])].image
        for i, (value, name) in enumerate(zip(smallest.values.tolist(), smallest.indices.tolist(), strict=True))
        if value < 1
    ]
    return len(set(originals))


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
        "thresholds": {name: round(value, 6) for name, value in thresholds.values.items()},
        "pairs": thresholds.pairs,
        "rank": thresholds.rank,
        "expected_false_alarms": thresholds.false_alarms,
        "false_alarms_of_95_in_100_calibrations_at_most": round(false_alarms_at_most(thresholds), 4),
    }


def held_out_fields(
    training: Sequence[Record], held_out: Sequence[Record], found: Nearest, thresholds: Thresholds
) -> dict[str, Any]:
    """The false alarms, and between which images: an auditor must see whether they are copies after all."""
    flags = thresholds.flags(found)
    pairs = []
    for i, record in enumerate(held_out):
        near = {name: training[int(found.index[name][i])].image.name for name in SCORES if flags[name][i]}
        pairs += [{"image": record.image.name, "score": name, "nearest": other} for name, other in near.items()]
    return {
        "images": len(held_out),
        "false_alarms": {name: share_of(values) for name, values in flags.items()},
        "flagged_pairs": pairs,
    }
