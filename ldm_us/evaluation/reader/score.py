"""What the readers' answers say: can they tell generated images from real ones, and how sure is that?

An answer is one of four ratings, from 1, surely generated, to 4, surely real; 1 and 2 count as "generated". AUC is that
of the ratings as a score of realness: 0.5 means that real and generated cannot be told apart. The intervals, of 95 %,
are those of intervals.py; they are for other images and these readers. The test against guessing is the exact binomial
one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_us.data.records import CLASSES
from ldm_us.evaluation.figures import share_of
from ldm_us.evaluation.reader.deck import Card, Key
from ldm_us.evaluation.reader.intervals import auc_interval, kappa_interval, share_interval

RATINGS = (1, 2, 3, 4)
REAL = 3  # and above
MIDDLE = 2.5  # between generated and real
SHOWN = 5  # images that misled most readers


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
    if labels is not None and not set(labels) <= set(CLASSES):
        raise ValueError(f"{path}: names a class other than {', '.join(CLASSES)}. Ask for the file again.")
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
    right = ((ratings >= REAL) == real).mean(axis=0)  # (n,): the share of readers who are
    together = {
        "accuracy": share_interval(float(right.mean()), len(right)),
        "auc": area_of(real, ratings),
        "kappa": mean_kappa(ratings >= REAL),
    }
    return {
        "study": key.study,
        "images": {"real": int(real.sum()), "generated": int((~real).sum())},
        "readers": [of_reader(answers, key.cards, real) for answers in readers],
        "together": together,
        "by_class": by_class(key.cards, ratings, real),
        "taken for real": misleading(key.cards, ratings, generated=True),
        "taken for generated": misleading(key.cards, ratings, generated=False),
    }


def of_reader(answers: Answers, cards: Sequence[Card], real: NDArray[np.bool_]) -> dict[str, Any]:
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
        "auc": area_of(real, answers.ratings[None]),
    }
    if answers.labels is not None:
        known = [i for i, card in enumerate(cards) if card.label in CLASSES]
        named = [answers.labels[i] == cards[i].label for i in known]
        for kind, wanted in (("real", True), ("generated", False)):
            hits = [hit for hit, i in zip(named, known, strict=True) if cards[i].real == wanted]
            if hits:
                figures[f"class_right_{kind}"] = share_of(hits)
    return figures


def auc(real: NDArray[np.bool_], ratings: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve of ratings (..., n): the share of pairs in order, ties counted half; -> (...)."""
    counts = [[((ratings == value) & kind).sum(axis=-1) for value in RATINGS] for kind in (real, ~real)]
    of_real, of_generated = (np.stack(each, axis=-1).astype(float) for each in counts)  # (..., 4)
    below = np.cumsum(of_generated, axis=-1) - of_generated / 2
    return (of_real * below).sum(axis=-1) / (of_real.sum(axis=-1) * of_generated.sum(axis=-1))


def area_of(real: NDArray[np.bool_], ratings: NDArray[np.int64]) -> dict[str, float]:
    """The mean AUC of readers (readers, n), with its interval."""
    return auc_interval(float(auc(real, ratings).mean()), int(real.sum()), int((~real).sum()))


def mean_kappa(said_real: NDArray[np.bool_]) -> dict[str, float] | None:
    """Mean of Cohen's kappa over all pairs of readers (readers, n).

    None for one reader, or where both of a pair say the same of all images: agreement by chance alone is then whole.
    """
    agreed, by_chance = [], []
    for one, other in combinations(said_real, 2):
        agreed.append(float((one == other).mean()))
        by_chance.append(float(one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean())))
    return None if not agreed or max(by_chance) == 1 else kappa_interval(agreed, by_chance, said_real.shape[1])


def by_class(cards: Sequence[Card], ratings: NDArray[np.int64], real: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Of each class, the share of right answers over all readers, with its interval, and of how many answers."""
    right = (ratings >= REAL) == real
    table = {}
    for label in sorted({card.label for card in cards}):
        chosen = right[:, [card.label == label for card in cards]]
        table[label] = share_interval(float(chosen.mean()), chosen.shape[1]) | {"answers": int(chosen.size)}
    return table


def misleading(cards: Sequence[Card], ratings: NDArray[np.int64], generated: bool) -> list[dict[str, Any]]:
    """The images that misled the most readers, with their mean rating."""
    wrong = [
        (round(float(column.mean()), 2), card.file)
        for card, column in zip(cards, ratings.T, strict=True)
        if card.real != generated and (column.mean() > MIDDLE if generated else column.mean() < MIDDLE)
    ]
    return [{"file": file, "mean_rating": mean} for mean, file in sorted(wrong, reverse=generated)[:SHOWN]]
