"""What the readers' answers say: can they tell generated images from real ones, and how sure is that?

An answer is one of four ratings, from 1, surely generated, to 4, surely real; 1 and 2 count as "generated". AUC is that
of the ratings as a score of realness: 0.5 means that real and generated cannot be told apart. Intervals: Wilson for one
reader's shares; the bootstrap over images for AUCs and for all readers together, who see the same images and are no
independent observers of them. The test against guessing is the exact binomial one.
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

RATINGS = (1, 2, 3, 4)
REAL = 3  # and above
MIDDLE = 2.5  # between generated and real
RESAMPLES = 2000  # of the bootstrap
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
        ratings = [int(answer["rating"]) for answer in given]
        labels = tuple(str(answer["label"]) for answer in given) if all("label" in answer for answer in given) else None
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file. Give the answers that a reader sent back.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not the answers of a reader ({error!r}). Ask for the file again.") from error
    if study != key.study:
        raise ValueError(
            f"{path}: answers of study {study}, but the key is of {key.study}. Give the key of that study."
        )
    if len(ratings) != len(key.cards) or not set(ratings) <= set(RATINGS):
        raise ValueError(
            f"{path}: {len(ratings)} answers for {len(key.cards)} images, or a rating that is not 1, 2, 3 or 4. Ask "
            "for the file again."
        )
    if labels is not None and not set(labels) <= set(CLASSES):
        raise ValueError(f"{path}: names a class other than {', '.join(CLASSES)}. Ask for the file again.")
    return Answers(reader, np.array(ratings), labels)


def score(key: Key, readers: Sequence[Answers], seed: int = 0) -> dict[str, Any]:
    """Every figure of the study, ready for JSON."""
    names = [answers.reader for answers in readers]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two files are of the reader {twice!r}. Give one file per reader.")
    real = np.array([card.real for card in key.cards])
    ratings = np.stack([answers.ratings for answers in readers])  # (readers, n)
    images = resampled(real, np.random.default_rng(seed))
    right = ((ratings >= REAL) == real).mean(axis=0)  # (n,): the share of readers who are
    together = {
        "accuracy": interval(right[images].mean(axis=-1)),
        "auc": interval(np.mean([auc(real[images], row[images]) for row in ratings], axis=0)),
        "kappa": mean_kappa(ratings >= REAL),
    }
    return {
        "study": key.study,
        "images": {"real": int(real.sum()), "generated": int((~real).sum())},
        "readers": [of_reader(answers, key.cards, real, images) for answers in readers],
        "together": together,
        "by_class": by_class(key.cards, ratings, real),
        "taken for real": misleading(key.cards, ratings, generated=True),
        "taken for generated": misleading(key.cards, ratings, generated=False),
    }


def of_reader(answers: Answers, cards: Sequence[Card], real: NDArray[np.bool_], images: NDArray[Any]) -> dict[str, Any]:
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
        "auc": interval(auc(real[images], answers.ratings[images])),
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
    """Area under the ROC curve of ratings (..., n): the share of pairs in order, ties counted half; -> (...).

    From the counts of the four ratings, for thousands of resamples at once.
    """
    counts = [[((ratings == value) & kind).sum(axis=-1) for value in RATINGS] for kind in (real, ~real)]
    of_real, of_generated = (np.stack(each, axis=-1).astype(float) for each in counts)  # (..., 4)
    below = np.cumsum(of_generated, axis=-1) - of_generated / 2
    return (of_real * below).sum(axis=-1) / (of_real.sum(axis=-1) * of_generated.sum(axis=-1))


def resampled(real: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of images (1 + RESAMPLES, n): first all as they are, then real and generated ones drawn anew."""
    kinds = [np.flatnonzero(real), np.flatnonzero(~real)]
    drawn = np.concatenate([rng.choice(kind, (RESAMPLES, len(kind))) for kind in kinds], axis=1)
    return np.concatenate([np.concatenate(kinds)[None], drawn])


def interval(values: NDArray[np.float64]) -> dict[str, float]:
    """The figure of all images, which is the first, with the 95 % percentile interval of the resampled ones."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {name: round(float(value), 3) for name, value in (("value", values[0]), ("low", low), ("high", high))}


def mean_kappa(said_real: NDArray[np.bool_]) -> float | None:
    """Mean of Cohen's kappa over all pairs of readers; None for one reader, or where all say the same of all."""
    from sklearn.metrics import cohen_kappa_score

    pairs = list(combinations(said_real, 2))
    if not pairs or any(len(np.unique(np.concatenate(pair))) < 2 for pair in pairs):
        return None
    return round(float(np.mean([cohen_kappa_score(a, b) for a, b in pairs])), 3)


def by_class(cards: Sequence[Card], ratings: NDArray[np.int64], real: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Of each class, the share of right answers over all readers, and how many answers that are."""
    right = (ratings >= REAL) == real
    table = {}
    for label in sorted({card.label for card in cards}):
        chosen = right[:, [card.label == label for card in cards]]
        table[label] = {"accuracy": round(float(chosen.mean()), 3), "answers": int(chosen.size)}
    return table


def misleading(cards: Sequence[Card], ratings: NDArray[np.int64], generated: bool) -> list[dict[str, Any]]:
    """The images that misled the most readers, with their mean rating."""
    wrong = [
        (round(float(column.mean()), 2), card.file)
        for card, column in zip(cards, ratings.T, strict=True)
        if card.real != generated and (column.mean() > MIDDLE if generated else column.mean() < MIDDLE)
    ]
    return [{"file": file, "mean_rating": mean} for mean, file in sorted(wrong, reverse=generated)[:SHOWN]]
