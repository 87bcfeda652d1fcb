"""Two measured sets against each other: a test for every figure, and shares of what should not be in an image."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ldm_us.evaluation.difference import Difference, holm, paired_difference, unpaired_difference
from ldm_us.evaluation.figures import share_of
from ldm_us.evaluation.realism import FIGURES, Measured

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


def compare(real: Measured, other: Measured, paired: bool) -> tuple[list[Row], list[str]]:
    """Test every figure that both sets have LEAST values of; -> (rows, a sentence for each figure left out).

    Paired: image i of one set is image i of the other, and only pairs with both values count.
    """
    rng = np.random.default_rng(SEED)
    rows: list[Row] = []
    left_out: list[str] = []
    for name, label in wanted_figures(real, other):
        values = [measured.of(name, label) for measured in (real, other)]
        finite = [np.isfinite(one) for one in values]
        if paired:
            finite = [finite[0] & finite[1]] * 2
        first, second = (one[known] for one, known in zip(values, finite, strict=True))
        if min(len(first), len(second)) < LEAST:
            of_class = "" if label is None else f", {label}"
            left_out.append(
                f"{FIGURES[name].title}{of_class}: {len(first)} and {len(second)} values, but each set needs {LEAST}."
            )
            continue
        difference = (paired_difference if paired else unpaired_difference)(first, second, rng)
        rows.append(Row(name, label, first, second, difference, difference.p))
    corrected = holm([row.difference.p for row in rows])
    rows = [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]
    return rows, no_lesions(real, other) + left_out


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
