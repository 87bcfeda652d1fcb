"""Two measured sets against each other: a test for every figure, and shares of what should not be in an image."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ldm_us.data.records import UNKNOWN
from ldm_us.evaluation.difference import Difference, holm, paired_difference, scipy_stats, within_classes
from ldm_us.evaluation.figures import share_of
from ldm_us.evaluation.realism.measures import FIGURES, Measured

LEAST = 10  # values of a figure in each set; fewer make no distribution
QUARTILES = (25, 50, 75)
SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Row:
    """One figure of both sets, over all images or over the lesions of a class."""

    name: str  # of FIGURES
    label: str | None
    real: np.ndarray
    other: np.ndarray
    difference: Difference
    p_holm: float  # corrected for the number of rows

    @property
    def title(self) -> str:
        """What is measured, and of which class."""
        title = FIGURES[self.name].title
        return title if self.label is None else f"{title}, {self.label}"


@dataclass(frozen=True)
class ArtefactTest:
    """Whether both sets have as much of what should not be in an image."""

    name: str  # black_upper_corners or grey_deviation
    label: str | None
    p: float
    p_holm: float  # corrected for the number of rows and of these


def compare(real: Measured, other: Measured, paired: bool) -> tuple[list[Row], list[ArtefactTest], list[str]]:
    """Test every figure that both sets have LEAST values of, and the artefacts; -> with a sentence for each left out.

    Paired: image i of one set is image i of the other, and only pairs with both values count. Else the images of a
    class are compared with those of the same class.
    """
    rng = np.random.default_rng(SEED)
    rows: list[Row] = []
    left_out: list[str] = []
    for name, label in wanted_figures(real, other):
        values = [measured.of(name, label) for measured in (real, other)]
        if paired:
            known = np.isfinite(values[0]) & np.isfinite(values[1])
            classes = [(values[0][known], values[1][known])]
        else:
            classes = by_class(real, other, values)
        first, second = (np.concatenate([np.empty(0), *(pair[i] for pair in classes)]) for i in (0, 1))
        if min(len(first), len(second)) < LEAST:
            of_class = "" if label is None else f", {label}"
            left_out.append(
                f"{FIGURES[name].title}{of_class}: {len(first)} and {len(second)} values, but each set needs {LEAST}."
            )
            continue
        difference = paired_difference(first, second, rng) if paired else within_classes(classes, rng)
        rows.append(Row(name, label, first, second, difference, difference.p))
    tests = artefact_tests(real, other, paired, rng)
    corrected = holm([row.difference.p for row in rows] + [test.p for test in tests])
    rows = [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=False)]
    tests = [replace(test, p_holm=p) for test, p in zip(tests, corrected[len(rows) :], strict=True)]
    return rows, tests, no_lesions(real, other) + left_out


def by_class(real: Measured, other: Measured, values: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split the known values of all images of both sets, (n,) and (m,), into those of each class that both have.

    All are one class where values are of a class alone, or where a class is unknown.
    """
    labels = [np.array(measured.labels) for measured in (real, other)]
    of_all = all(len(own) == len(one) for own, one in zip(labels, values, strict=True))
    if not of_all or any(UNKNOWN in own for own in labels):
        labels = [np.full(len(one), UNKNOWN) for one in values]
    pairs = []
    for label in sorted({*labels[0]} & {*labels[1]}):
        first, second = (one[(own == label) & np.isfinite(one)] for own, one in zip(labels, values, strict=True))
        if len(first) and len(second):
            pairs.append((first, second))
    return pairs


def artefact_tests(real: Measured, other: Measured, paired: bool, rng: np.random.Generator) -> list[ArtefactTest]:
    """Black corners of each class that both have, by Fisher's exact test, and grey deviation by ranks, not corrected.

    Of pairs, McNemar's exact test: the binomial test of the images that one set alone has black corners in.
    """
    stats, tests = scipy_stats(), []
    for label in sorted({*real.labels} & {*other.labels}):
        first, second = (np.array(_of_class(one.labels, one.black_corners, label)) for one in (real, other))
        if paired:
            changed = int((first != second).sum())
            p = stats.binomtest(int((first & ~second).sum()), changed).pvalue if changed else 1.0
        else:
            p = stats.fisher_exact([[hits.sum(), (~hits).sum()] for hits in (first, second)])[1]
        tests.append(ArtefactTest("black_upper_corners", label, float(p), float(p)))
    deviations = [np.array(one.grey_deviation, float) for one in (real, other)]
    if paired:
        p = paired_difference(deviations[0], deviations[1], rng).p
    else:
        p = within_classes(by_class(real, other, deviations), rng).p
    return [*tests, ArtefactTest("grey_deviation", None, p, p)]


def wanted_figures(real: Measured, other: Measured) -> list[tuple[str, str | None]]:
    """Every figure of all images, and of each class with a lesion in either set, unless a set has no lesions."""
    wanted: list[tuple[str, str | None]] = [(name, None) for name, figure in FIGURES.items() if not figure.of_lesions]
    classes = [classes_with_lesions(measured) for measured in (real, other)]
    if not all(classes):
        return wanted
    of_lesions = [name for name, figure in FIGURES.items() if figure.of_lesions]
    labels = sorted(classes[0] | classes[1])
    return [*wanted, *((name, label) for label, name in itertools.product(labels, of_lesions))]


def classes_with_lesions(measured: Measured) -> set[str]:
    """The classes with an image whose lesion is large enough to measure."""
    known = np.isfinite(measured.of("lesion_contrast"))
    return {label for label, has_lesion in zip(measured.labels, known, strict=True) if has_lesion}


def no_lesions(real: Measured, other: Measured) -> list[str]:
    """A sentence where a set has no lesions to measure."""
    return [
        f"Lesion contrast, gCNR and what is behind the lesion: no lesion masks in {option}."
        for option, measured in (("--real", real), ("the images compared with it", other))
        if not classes_with_lesions(measured)
    ]


def artefacts(measured: Measured) -> dict[str, Any]:
    """Shares of images with black upper corners, by class, and of those where R = G = B fails, with 95 % intervals."""
    corners = {label: _of_class(measured.labels, measured.black_corners, label) for label in sorted({*measured.labels})}
    return {
        "black_upper_corners": {label: share_of(hits) for label, hits in corners.items()},
        "not_grey": share_of([deviation > 0 for deviation in measured.grey_deviation]),
        "median_grey_deviation": float(np.median(measured.grey_deviation)),
        "largest_grey_deviation": max(measured.grey_deviation),
    }


def _of_class(labels: Sequence[str], hits: Sequence[bool], label: str) -> list[bool]:
    return [hit for own, hit in zip(labels, hits, strict=True) if own == label]


def row_as_json(row: Row, paired: bool) -> dict[str, Any]:
    """A row in numbers: quartiles of both sets and the test."""
    difference = row.difference
    return {
        "figure": row.name,
        "class": row.label,
        "unit": FIGURES[row.name].unit,
        "real": quartiles(row.real),
        "reconstructed" if paired else "generated": quartiles(row.other),
        "mean_difference" if paired else "cliffs_delta": significant(difference.effect),
        "low": significant(difference.low),
        "high": significant(difference.high),
        "p": significant(difference.p, 2),
        "p_holm": significant(row.p_holm, 2),
    }


def artefact_test_as_json(test: ArtefactTest) -> dict[str, Any]:
    """A test of an artefact in numbers."""
    return {
        "artefact": test.name,
        "class": test.label,
        "p": significant(test.p, 2),
        "p_holm": significant(test.p_holm, 2),
    }


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Number, median and quartiles of the values."""
    low, median, high = np.percentile(values, QUARTILES)
    return {
        "n": len(values),
        "median": significant(median),
        "quarter": significant(low),
        "three_quarters": significant(high),
    }


def significant(value: float, digits: int = 4) -> float:
    """The number with so many digits that mean something."""
    return float(f"{value:.{digits}g}")
