"""From the results of all units to rows of figures: AUC with its interval, and the paired difference from an arm."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldm_us.evaluation.auc import Floats, Ints, macro_auc
from ldm_us.evaluation.protocol.arms import Arm
from ldm_us.evaluation.protocol.intervals import (
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
class Row:
    """The figures of an arm on a test set: of one seed, or the mean of all seeds."""

    test: str
    arm: str
    seed: int | None  # None: the mean of all
    images: int  # of the test set
    groups: int
    fewest: int  # groups of a class
    classes: tuple[str, ...]  # present in the test set
    trained_on: float  # images
    auc: Interval
    difference: Interval | None  # from the reference arm, paired; None for the reference itself
    reference: str
    sensitivity: float
    specificity: float
    accuracy: float


@dataclass(frozen=True)
class Tested:
    """A test set as every classifier saw it."""

    labels: Ints  # (n,)
    groups: list[str]
    classes: list[str]  # all that the classifiers know

    @property
    def present(self) -> tuple[str, ...]:
        """The classes that have an image."""
        return tuple(self.classes[k] for k in sorted(set(self.labels.tolist())))


def read_tested(name: str, results: Sequence[Result]) -> Tested:
    """Take a test set from the results. Raise ValueError where they are not of the same images."""
    first = results[0]["predictions"][name]
    for result in results:
        if result["predictions"][name]["sha256"] != first["sha256"]:
            raise ValueError(f"the test set {name!r}: two classifiers saw different images. Start in a new --out.")
    classes = list(results[0]["classes"])
    return Tested(np.array([classes.index(label) for label in first["label"]]), list(first["group"]), classes)


def probabilities_of(result: Result, test: str) -> Floats:
    """(n, classes)."""
    return np.array(result["predictions"][test]["probabilities"], dtype=np.float64)


def make_rows(arms: Sequence[Arm], seeds: Sequence[int], results: Results, resamples: int) -> list[Row]:
    """The rows of all test sets: for every arm the mean of its seeds, then each seed."""
    rows: list[Row] = []
    for test in dict.fromkeys(test for arm in arms for test in arm.tests):
        tested_arms = [arm for arm in arms if test in arm.tests]
        tested = read_tested(test, [results[arm.name, seed] for arm in tested_arms for seed in seeds])
        weights = group_weights(tested.groups, tested.labels, resamples, BOOTSTRAP_SEED)
        measured = {
            arm.name: measure([probabilities_of(results[arm.name, seed], test) for seed in seeds], tested, weights)
            for arm in tested_arms
        }
        for arm in tested_arms:
            rows.append(make_row(test, arm, None, seeds, tested, results, measured))
            for i, seed in enumerate(seeds):
                single = {name: Measured(one.values[[i]], one.resampled[:, [i]]) for name, one in measured.items()}
                rows.append(make_row(test, arm, seed, [seed], tested, results, single))
    return rows


def measure(probabilities: Sequence[Floats], tested: Tested, weights: Floats) -> Measured:
    """The AUC of the classifiers of an arm, one a seed, on the test set and on its resamples."""
    values = [macro_auc(tested.labels, one) for one in probabilities]
    resampled = [macro_auc(tested.labels, one, weights) for one in probabilities]
    return Measured(np.array(values), np.stack(resampled, axis=1))


def make_row(
    test: str,
    arm: Arm,
    seed: int | None,
    seeds: Sequence[int],
    tested: Tested,
    results: Results,
    measured: Mapping[str, Measured],
) -> Row:
    """One row: every figure is a mean over `seeds`, those that `measured` holds for every arm."""
    families = count_families(tested.groups, tested.labels)
    difference = None
    if arm.name != arm.reference and arm.reference in measured:
        difference = difference_interval(measured[arm.name], measured[arm.reference], families)
    named = [probabilities_of(results[arm.name, one], test) for one in seeds]
    rates = np.full((len(seeds), 2), np.nan)
    if SUSPECT in tested.present and len(tested.present) > 1:
        k = tested.classes.index(SUSPECT)
        rates = np.array([sensitivity_specificity(tested.labels, p, k) for p in named])
    return Row(
        test=test,
        arm=arm.name,
        seed=seed,
        images=len(tested.labels),
        groups=len(set(tested.groups)),
        fewest=families.fewest,
        classes=tested.present,
        trained_on=float(np.mean([sum(results[arm.name, one]["trained_on"].values()) for one in seeds])),
        auc=auc_interval(measured[arm.name], families),
        difference=difference,
        reference=arm.reference,
        sensitivity=float(rates[:, 0].mean()),
        specificity=float(rates[:, 1].mean()),
        accuracy=float(np.mean([(p.argmax(axis=1) == tested.labels).mean() for p in named])),
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
        compared = ["", "", "", ""]
        if row.difference is not None:
            compared = [row.reference, *(f"{v:.6f}" for v in row.difference)]
        figures = [f"{v:.6f}" if np.isfinite(v) else "" for v in (row.sensitivity, row.specificity, row.accuracy)]
        seed = "mean" if row.seed is None else row.seed
        facts = [row.test, row.arm, seed, row.images, row.groups, " ".join(row.classes), f"{row.trained_on:g}"]
        writer.writerow([*facts, *(f"{v:.6f}" for v in row.auc), *compared, *figures])
    return file.getvalue()


HEADER = ("Trained on", "Images", "AUC (95 % interval)", "Each seed", "Difference (95 % interval)", "Sens.", "Spec.")


METHOD = (
    "AUC: mean of one-vs-rest over the classes present in the test set, then over the seeds, which also stand singly. "
    "Intervals: 95 percent, over families or patients of each class and over the seeds, symmetric in the logit of the "
    "AUC. Difference: from the real arm of the same table, on the same resamples. Sens., Spec.: of malignant against "
    "the rest, where the most probable class decides."
)


def cells(rows: Sequence[Row], test: str) -> list[list[str]]:
    """The table of a test set, as text: an arm a line."""
    lines = []
    for row in (row for row in rows if row.test == test and row.seed is None):
        single = [one for one in rows if one.test == test and one.arm == row.arm and one.seed is not None]
        compared = "" if row.difference is None else f"{row.difference.value:+.3f} ({spread(row.difference, '+')})"
        rates = [f"{rate:.2f}" if np.isfinite(rate) else "" for rate in (row.sensitivity, row.specificity)]
        auc = f"{row.auc.value:.3f} ({spread(row.auc)})"
        seeds = " ".join(f"{one.auc.value:.3f}" for one in single)
        lines.append([row.arm, f"{row.trained_on:.0f}", auc, seeds, compared, *rates])
    return lines


def spread(one: Interval, sign: str = "") -> str:
    """The ends of an interval."""
    return f"{one.low:{sign}.3f} to {one.high:{sign}.3f}"


def title_of(rows: Sequence[Row], test: str) -> str:
    """A test set in words: its size and, where a class has no image, which classes the AUC is over."""
    row = next(row for row in rows if row.test == test)
    return f"{test}: {row.images} images of {row.groups} families, AUC over {', '.join(row.classes)}"


def to_markdown(rows: Sequence[Row], said: Sequence[str]) -> str:
    """The tables of all test sets."""
    parts = ["# Classifiers on real and generated images\n"]
    parts += [f"- {sentence}\n" for sentence in said]
    for test in dict.fromkeys(row.test for row in rows):
        parts.append(f"\n## {title_of(rows, test)}\n\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}\n")
        parts += [f"| {' | '.join(line)} |\n" for line in cells(rows, test)]
    parts.append(f"\n{METHOD}\n")
    return "".join(parts)
