"""What the readers' answers say: can they tell generated images from real ones, and how sure is that?

An answer is one of four ratings, from 1, surely generated, to 4, surely real; 1 and 2 count as "generated". AUC is that
of the ratings as a score of realness: 0.5 means that real and generated cannot be told apart. The test against guessing
is the exact binomial one.

The intervals, of 95 %, are for other images and these readers, and do not vanish where every answer is right: a
bootstrap of answers without a mistake draws none, so it calls a perfect reader perfect for ever. These intervals ask
instead which true values are not rejected by what was seen, as Wilson's does for a share. Where several readers are
taken together, n is the number of images, as if all readers gave the same answers: rather too wide than too narrow, for
what the readers share is not counted twice.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_us.data.organ import UNKNOWN
from ldm_us.evaluation.auc import auc
from ldm_us.evaluation.figures import Z_95, share_of, wilson_interval
from ldm_us.evaluation.reader.deck import RATINGS, Card, Key

REAL = 3  # and above
MIDDLE = 2.5  # between generated and real
SHOWN = 5  # images that misled most readers
ROOM = 1e-9  # the equation of an area's bounds is solved between 0 and 1, without these


@dataclass(frozen=True)
class Answers:
    """What one reader returned, in the order of the key."""

    reader: str
    ratings: NDArray[np.int64]  # (n,) of RATINGS
    labels: tuple[str, ...] | None  # the classes named, where they were asked for


def read_answers(path: Path, key: Key) -> Answers:
    """Read one reader's file. Raise ValueError where it is none, of another study or not complete."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        study, reader, given = values["study"], str(values["reader"]), list(values["answers"])
        ratings = [rating_of(answer["rating"]) for answer in given]
        labels = tuple(str(answer["label"]) for answer in given) if all("label" in answer for answer in given) else None
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file. Give the answers that a reader sent back.") from error
    except UnicodeDecodeError as error:  # its repr would print the whole file
        raise ValueError(f"{path}: not the answers of a reader, but no text at all. Ask for the file again.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not the answers of a reader ({error}). Ask for the file again.") from error
    if study != key.study:
        raise ValueError(
            f"{path}: answers of study {study}, but the key is of {key.study}. Give the key of that study."
        )
    if len(ratings) != len(key.cards):
        raise ValueError(f"{path}: {len(ratings)} answers for {len(key.cards)} images. Ask for the file again.")
    if labels is not None and not set(labels) <= set(key.classes):
        raise ValueError(f"{path}: names a class other than {', '.join(key.classes)}. Ask for the file again.")
    return Answers(reader, np.array(ratings), labels)


def rating_of(given: Any) -> int:
    """The rating of an answer, "4" in the sheet's file. Raise ValueError for 2.9 and true, which are no rating."""
    if isinstance(given, str | int) and not isinstance(given, bool) and str(given) in map(str, RATINGS):
        return int(given)
    raise ValueError(f"a rating that is not 1, 2, 3 or 4: {str(given)[:20]}")


def score(key: Key, readers: Sequence[Answers]) -> dict[str, Any]:
    """Every figure of the study, ready for JSON."""
    names = [answers.reader for answers in readers]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two files are of the reader {twice!r}. Give one file per reader.")
    real = np.array([card.real for card in key.cards])
    ratings = np.stack([answers.ratings for answers in readers])  # (readers, n)
    right = (ratings >= REAL) == real  # (readers, n)
    return {
        "study": key.study,
        "images": {"real": int(real.sum()), "generated": int((~real).sum())},
        "readers": [reader_figures(answers, key.cards, real) for answers in readers],
        "together": {
            "accuracy": share_interval(right),
            "auc": mean_auc(real, ratings),
            "kappa": mean_kappa(ratings >= REAL),
        },
        "by_class": accuracy_by_class(key.cards, right),
        "taken for real": misleading(key.cards, ratings, generated=True),
        "taken for generated": misleading(key.cards, ratings, generated=False),
    }


def reader_figures(answers: Answers, cards: Sequence[Card], real: NDArray[np.bool_]) -> dict[str, Any]:
    """The figures of one reader."""
    from scipy.stats import binomtest

    said_real = answers.ratings >= REAL
    right = said_real == real
    figures = {
        "reader": answers.reader,
        "accuracy": share_of(right.tolist()),
        "p_guessing": round(float(binomtest(int(right.sum()), len(right), 0.5).pvalue), 4),
        "generated_found": share_of((~said_real[~real]).tolist()),
        "real_taken_for_real": share_of(said_real[real].tolist()),
        "auc": mean_auc(real, answers.ratings[None]),
    }
    if answers.labels is not None:
        named = [(card, label) for card, label in zip(cards, answers.labels, strict=True) if card.label != UNKNOWN]
        for kind, wanted in (("real", True), ("generated", False)):
            hits = [label == card.label for card, label in named if card.real == wanted]
            if hits:
                figures[f"class_right_{kind}"] = share_of(hits)
    return figures


def share_interval(right: NDArray[np.bool_]) -> dict[str, float]:
    """The share of right answers of all readers (readers, n).   Wilson, JASA 22 (1927) 209-212."""
    share, n = float(right.mean()), right.shape[1]
    return rounded(share, *wilson_interval(share * n, n))


def mean_auc(real: NDArray[np.bool_], ratings: NDArray[np.int64]) -> dict[str, float]:
    """The mean AUC of readers (readers, n), with its interval."""
    areas = [float(auc(row[real], row[~real])) for row in ratings]
    return auc_interval(math.fsum(areas) / len(areas), int(real.sum()), int((~real).sum()))


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


def mean_kappa(said_real: NDArray[np.bool_]) -> dict[str, float] | None:
    """Mean over all pairs of readers (readers, n) of Cohen's kappa, (p - c) / (1 - c): what they agree on, and would.

    None for one reader, or where both of a pair say the same of all images: agreement by chance alone is then whole.
    Wilson's interval of each p, with c held: Cohen, Educational and Psychological Measurement 20 (1960) 37-46, does so
    with the normal interval, which vanishes where two readers agree on all.
    """
    n, rows = said_real.shape[1], []
    for one, other in combinations(said_real, 2):
        agreed = float((one == other).mean())
        by_chance = float(one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean()))
        if by_chance == 1:
            return None
        bounds = (agreed, *wilson_interval(agreed * n, n))
        rows.append([(bound - by_chance) / (1 - by_chance) for bound in bounds])
    return rounded(*(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))) if rows else None


def rounded(value: float, low: float, high: float) -> dict[str, float]:
    """Three digits after the point."""
    return {name: round(number, 3) for name, number in (("value", value), ("low", low), ("high", high))}


def accuracy_by_class(cards: Sequence[Card], right: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Of each class, the share of right answers (readers, n) with its interval, and of how many answers."""
    table = {}
    for label in sorted({card.label for card in cards}):
        of_class = right[:, [card.label == label for card in cards]]
        table[label] = share_interval(of_class) | {"answers": int(of_class.size)}
    return table


def misleading(cards: Sequence[Card], ratings: NDArray[np.int64], generated: bool) -> list[dict[str, Any]]:
    """The images that misled the most readers, with their mean rating."""
    wrong = [
        (round(float(column.mean()), 2), card.file)
        for card, column in zip(cards, ratings.T, strict=True)
        if card.real != generated and (column.mean() > MIDDLE if generated else column.mean() < MIDDLE)
    ]
    return [{"file": file, "mean_rating": mean} for mean, file in sorted(wrong, reverse=generated)[:SHOWN]]
