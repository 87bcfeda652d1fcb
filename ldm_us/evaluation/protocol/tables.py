"""From the results of all units to rows of figures: AUC with its interval, and the paired difference from an arm."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldm_us.evaluation.auc import Floats, Ints, macro_auc
from ldm_us.evaluation.protocol.arms import Arm
from ldm_us.evaluation.protocol.intervals import (
    Families,
    Interval,
    Measured,
    auc_interval,
    count_families,
    difference_interval,
    group_weights,
)
from ldm_us.evaluation.protocol.units import Result

BOOTSTRAP_SEED = 0  # of every test set: arms are compared on the same resamples
SUSPECT = "malignant"  # the class that sensitivity and specificity are of

Results = Mapping[tuple[str, int], Result]  # by name of the arm and seed


@dataclass(frozen=True)
class Tested:
    """A test set as every classifier saw it."""

    name: str
    labels: Ints  # (n,)
    groups: list[str]
    classes: list[str]  # all that the classifiers know
    families: Families

    @property
    def present(self) -> tuple[str, ...]:
        """The classes that have an image."""
        return tuple(self.classes[k] for k in sorted(set(self.labels.tolist())))


@dataclass(frozen=True)
class Row:
    """The figures of an arm on a test set: of one seed, or the mean of all seeds."""

    test: Tested
    arm: Arm
    seed: int | None  # None: the mean of all
    trained_on: float  # images
    auc: Interval
    difference: Interval | None  # from the reference arm, paired; None for the reference itself
    sensitivity: float
    specificity: float
    accuracy: float


def read_tested(name: str, results: Sequence[Result]) -> Tested:
    """Take a test set from the results. Raise ValueError where they are not of the same images."""
    first = results[0]["predictions"][name]
    if any(result["predictions"][name]["sha256"] != first["sha256"] for result in results):
        raise ValueError(f"the test set {name!r}: two classifiers saw different images. Start in a new --out.")
    classes = list(results[0]["classes"])
    labels = np.array([classes.index(label) for label in first["label"]])
    return Tested(name, labels, list(first["group"]), classes, count_families(first["group"], labels))


def probabilities_of(result: Result, test: str) -> Floats:
    """(n, classes)."""
    return np.array(result["predictions"][test]["probabilities"], dtype=np.float64)


def make_rows(arms: Sequence[Arm], seeds: Sequence[int], results: Results, resamples: int) -> list[Row]:
    """The rows of all test sets: for every arm the mean of its seeds, then each seed."""
    rows: list[Row] = []
    for name in dict.fromkeys(test for arm in arms for test in arm.tests):
        tested_arms = [arm for arm in arms if name in arm.tests]
        test = read_tested(name, [results[arm.name, seed] for arm in tested_arms for seed in seeds])
        weights = group_weights(test.groups, test.labels, resamples, BOOTSTRAP_SEED)
        weights = np.concatenate([np.ones((1, len(test.labels))), weights])  # first the images as they are
        measured = {}
        for arm in tested_arms:
            aucs = [macro_auc(test.labels, probabilities_of(results[arm.name, s], name), weights) for s in seeds]
            measured[arm.name] = Measured(np.array([one[0] for one in aucs]), np.stack([one[1:] for one in aucs], 1))
        for arm in tested_arms:
            rows += [make_row(test, arm, seed, seeds, results, measured) for seed in (None, *seeds)]
    return rows


def make_row(
    test: Tested,
    arm: Arm,
    seed: int | None,
    seeds: Sequence[int],
    results: Results,
    measured: Mapping[str, Measured],
) -> Row:
    """One row: every figure is a mean over the seeds, or of one of them. `measured`: all arms, with all seeds."""
    index = [i for i, one in enumerate(seeds) if seed in (None, one)]
    chosen = {name: Measured(one.values[index], one.resampled[:, index]) for name, one in measured.items()}
    compared = arm.name != arm.reference and arm.reference in chosen
    of_seeds = [results[arm.name, seeds[i]] for i in index]
    named = [probabilities_of(result, test.name) for result in of_seeds]
    rates = np.full((len(index), 2), np.nan)
    if SUSPECT in test.present and len(test.present) > 1:
        k = test.classes.index(SUSPECT)
        rates = np.array([sensitivity_specificity(test.labels, p, k) for p in named])
    return Row(
        test=test,
        arm=arm,
        seed=seed,
        trained_on=float(np.mean([sum(result["trained_on"].values()) for result in of_seeds])),
        auc=auc_interval(chosen[arm.name], test.families),
        difference=difference_interval(chosen[arm.name], chosen[arm.reference], test.families) if compared else None,
        sensitivity=float(rates[:, 0].mean()),
        specificity=float(rates[:, 1].mean()),
        accuracy=float(np.mean([(p.argmax(axis=1) == test.labels).mean() for p in named])),
    )


def sensitivity_specificity(labels: Ints, probabilities: Floats, k: int) -> tuple[float, float]:
    """Of the images of class k the share that is named k, and of all others the share that is not."""
    named = probabilities.argmax(axis=1) == k
    return float(named[labels == k].mean()), float((~named)[labels != k].mean())


COLUMNS = (
    *("test", "arm", "seed", "test_images", "test_groups", "test_classes", "trained_on", "auc", "auc_low", "auc_high"),
    *("reference", "difference", "difference_low", "difference_high"),
    *("sensitivity_malignant", "specificity_malignant", "accuracy"),
)


def to_csv(rows: Sequence[Row]) -> str:
    """All rows, a line each; a figure that does not exist is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        test, seed = row.test, "mean" if row.seed is None else row.seed
        facts = [test.name, row.arm.name, seed, len(test.labels), len(set(test.groups)), " ".join(test.present)]
        reference, difference = ("", [np.nan] * 3) if row.difference is None else (row.arm.reference, row.difference)
        rates = (row.sensitivity, row.specificity, row.accuracy)
        auc, compared, shares = (
            [f"{v:.6f}" if np.isfinite(v) else "" for v in values] for values in (row.auc, difference, rates)
        )
        writer.writerow([*facts, f"{row.trained_on:g}", *auc, reference, *compared, *shares])
    return file.getvalue()


HEADER = ("Trained on", "Images", "AUC (95 % interval)", "Each seed", "Difference (95 % interval)", "Sens.", "Spec.")
METHOD = (
    "AUC: mean of one-vs-rest over the classes present in the test set, then over the seeds, which also stand singly. "
    "Intervals: 95 percent, over families or patients of each class and over the seeds, symmetric in the logit of the "
    "AUC. Difference: from the real arm of the same table, on the same resamples. Sens., Spec.: of malignant against "
    "the rest, where the most probable class decides."
)


def tests_of(rows: Sequence[Row]) -> list[Tested]:
    """The test sets of the rows, in order."""
    return list({row.test.name: row.test for row in rows}.values())


def cells(rows: Sequence[Row], test: Tested) -> list[list[str]]:
    """The table of a test set, as text: an arm a line."""
    lines = []
    for row in (row for row in rows if row.test is test and row.seed is None):
        single = [one for one in rows if one.test is test and one.arm == row.arm and one.seed is not None]
        compared = "" if row.difference is None else f"{row.difference.value:+.3f} ({spread(row.difference, '+')})"
        rates = [f"{rate:.2f}" if np.isfinite(rate) else "" for rate in (row.sensitivity, row.specificity)]
        auc = f"{row.auc.value:.3f} ({spread(row.auc)})"
        seeds = " ".join(f"{one.auc.value:.3f}" for one in single)
        lines.append([row.arm.name, f"{row.trained_on:.0f}", auc, seeds, compared, *rates])
    return lines


def spread(one: Interval, sign: str = "") -> str:
    """The ends of an interval."""
    return f"{one.low:{sign}.3f} to {one.high:{sign}.3f}"


def title_of(test: Tested) -> str:
    """A test set in words: its size and, where a class has no image, which classes the AUC is over."""
    counted = f"{len(test.labels)} images of {len(set(test.groups))} families"
    return f"{test.name}: {counted}, AUC over {', '.join(test.present)}"


def to_markdown(rows: Sequence[Row], said: Sequence[str]) -> str:
    """The tables of all test sets."""
    parts = ["# Classifiers on real and generated images\n", *(f"- {sentence}\n" for sentence in said)]
    for test in tests_of(rows):
        parts.append(f"\n## {title_of(test)}\n\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}\n")
        parts += [f"| {' | '.join(line)} |\n" for line in cells(rows, test)]
    return "".join([*parts, f"\n{METHOD}\n"])
