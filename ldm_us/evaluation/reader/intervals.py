"""Intervals of 95 % that do not vanish where every answer is right: shares, areas under the ROC curve, agreement.

A bootstrap of answers without a mistake draws none, so it calls a perfect reader perfect for ever. These intervals ask
instead which true values are not rejected by what was seen, as Wilson's does for a share. Where several readers are
taken together, n is the number of images, as if all readers gave the same answers: rather too wide than too narrow, for
what the readers share is not counted twice.
"""

import math
from collections.abc import Sequence

from ldm_us.evaluation.figures import Z_95, wilson_interval

ROOM = 1e-9  # the equations are solved between 0 and 1, without these


def share_interval(share: float, n: int) -> dict[str, float]:
    """A share of n images, which may be a mean over readers.   Wilson, JASA 22 (1927) 209-212."""
    return rounded(share, *wilson_interval(share * n, n))


def auc_interval(area: float, n_real: int, n_generated: int) -> dict[str, float]:
    """An area under the ROC curve.   Newcombe, Statistics in Medicine 25 (2006) 559-573, method 5.

    Bounds are the areas a with |a - area| = z sqrt(var(a)), and var that of Hanley and McNeil, Radiology 143 (1982)
    29-36, at the average (n_real + n_generated) / 2 of both numbers: no bound leaves [0, 1], and none is `area` itself.
    """
    from scipy.optimize import brentq

    mean_others = (n_real + n_generated) / 2 - 1

    def excess(a: float) -> float:
        more = 1 + mean_others * ((1 - a) / (2 - a) + a / (1 + a))
        return (a - area) ** 2 - Z_95**2 * a * (1 - a) * more / (n_real * n_generated)

    low = brentq(excess, ROOM, min(area, 1 - ROOM)) if area > ROOM else 0.0
    high = brentq(excess, max(area, ROOM), 1 - ROOM) if area < 1 - ROOM else 1.0
    return rounded(area, low, high)


def kappa_interval(agreed: Sequence[float], by_chance: Sequence[float], n: int) -> dict[str, float]:
    """The mean over pairs of readers of Cohen's kappa, (p - c) / (1 - c), from what they agreed on and would by chance.

    Wilson's interval of each p, with c held: Cohen, Educational and Psychological Measurement 20 (1960) 37-46, does so
    with the normal interval, which vanishes where two readers agree on all.
    """
    pairs = list(zip(agreed, by_chance, strict=True))
    bounds = [(p, *wilson_interval(p * n, n)) for p, _ in pairs]
    scaled = [[(value - c) / (1 - c) for value in row] for row, (_, c) in zip(bounds, pairs, strict=True)]
    value, low, high = (math.fsum(column) / len(pairs) for column in zip(*scaled, strict=True))
    return rounded(value, low, high)


def rounded(value: float, low: float, high: float) -> dict[str, float]:
    """Three digits after the point."""
    return {name: round(number, 3) for name, number in (("value", value), ("low", low), ("high", high))}
