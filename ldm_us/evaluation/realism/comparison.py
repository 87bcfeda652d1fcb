"""Two measured sets against each other: a test for every figure, and for what should not be in an image."""

import math
from dataclasses import dataclass, replace

import numpy as np

from ldm_us.data.organ import UNKNOWN
from ldm_us.evaluation.difference import Difference, holm, paired_difference, scipy_stats, within_classes
from ldm_us.evaluation.realism.measures import FIGURES, Measured

LEAST = 10  # values of a figure in each set; fewer make no distribution
SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class FigureTest:
    """One figure of both sets, over all images or over the lesions of a class."""

    name: str  # of FIGURES
    label: str | None
    real: np.ndarray
    other: np.ndarray
    difference: Difference
    p_holm: float  # corrected for the number of all tests
    paired: bool
    bound: float  # a value of as much is known to be no less, and nothing else; inf: none is

    @property
    def at_bound(self) -> tuple[int, int]:
        """How many values of each set are lower bounds."""
        return int((self.real >= self.bound).sum()), int((self.other >= self.bound).sum())


@dataclass(frozen=True)
class ArtefactTest:
    """Whether both sets have as much of what should not be in an image."""

    name: str  # black_upper_corners or grey_deviation
    label: str | None
    p: float
    p_holm: float  # corrected for the number of all tests


def title_of(name: str, label: str | None) -> str:
    """The title of a figure, and its class if it is of one."""
    return FIGURES[name].title if label is None else f"{FIGURES[name].title}, {label}"


def compare(real: Measured, other: Measured, paired: bool) -> tuple[list[FigureTest], list[ArtefactTest], list[str]]:
    """Test every figure that both sets have LEAST values of, and the artefacts; -> with a sentence for each left out.

    Paired: image i of one set is image i of the other, and only pairs with both values count. Else the images of a
    class are compared with those of the same class.
    """
    rng = np.random.default_rng(SEED)
    figures: list[FigureTest] = []
    wanted, left_out = wanted_figures(real, other, paired)
    for name, label in wanted:
        classes = known_values(real, other, real.of(name, label), other.of(name, label), paired, label)
        first, second = (np.concatenate([np.empty(0), *(pair[i] for pair in classes)]) for i in (0, 1))
        if min(len(first), len(second)) < LEAST:
            counted = f"{len(first)} and {len(second)} values, but each set needs {LEAST}."
            left_out.append(f"{title_of(name, label)}: {counted}")
            continue
        difference = paired_difference(first, second, rng) if paired else within_classes(classes, rng)
        bound = real.bounds.get(name, math.inf)
        figures.append(FigureTest(name, label, first, second, difference, difference.p, paired, bound))
    artefacts = artefact_tests(real, other, paired, rng)
    corrected = iter(holm([one.difference.p for one in figures] + [one.p for one in artefacts]))
    figures = [replace(one, p_holm=next(corrected)) for one in figures]
    return figures, [replace(one, p_holm=next(corrected)) for one in artefacts], left_out


def known_values(
    real: Measured, other: Measured, first: np.ndarray, second: np.ndarray, paired: bool, label: str | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split the known values of both sets, (n,) and (m,), into those of each class that both have.

    All are one class where they are of pairs or of a class alone, or where a class is unknown.
    """
    if paired:
        known = np.isfinite(first) & np.isfinite(second)
        return [(first[known], second[known])]
    pairs = [(first, second)]
    if label is None and UNKNOWN not in {*real.labels, *other.labels}:
        shared = sorted({*real.labels} & {*other.labels})
        pairs = [(first[real.members(one)], second[other.members(one)]) for one in shared]
    finite = [(one[np.isfinite(one)], two[np.isfinite(two)]) for one, two in pairs]
    return [(one, two) for one, two in finite if len(one) and len(two)]


def artefact_tests(real: Measured, other: Measured, paired: bool, rng: np.random.Generator) -> list[ArtefactTest]:
    """Black corners of each class that both have, by Fisher's exact test, and grey deviation by ranks, not corrected.

    Of pairs, McNemar's exact test: the binomial test of the images that one set alone has black corners in.
    """
    stats, tests = scipy_stats(), []
    for label in sorted({*real.labels} & {*other.labels}):
        first, second = (np.array(one.black_corners)[one.members(label)] for one in (real, other))
        if paired:
            changed = int((first != second).sum())
            p = stats.binomtest(int((first & ~second).sum()), changed).pvalue if changed else 1.0
        else:
            p = stats.fisher_exact([[hits.sum(), (~hits).sum()] for hits in (first, second)])[1]
        tests.append(ArtefactTest("black_upper_corners", label, float(p), float(p)))
    first, second = (np.array(one.grey_deviation, float) for one in (real, other))
    classes = known_values(real, other, first, second, paired)
    p = paired_difference(*classes[0], rng).p if paired else within_classes(classes, rng).p
    return [*tests, ArtefactTest("grey_deviation", None, p, p)]


def wanted_figures(real: Measured, other: Measured, paired: bool) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Every figure of all images, and of each class with a lesion in either set, unless a set has no lesions.

    Also a sentence where a set has none.
    """
    classes = {"--real": classes_with_lesions(real), "the images compared with it": classes_with_lesions(other)}
    left_out = [
        f"Lesion contrast, gCNR and what is behind the lesion: no lesion masks in {option}."
        for option, labels in classes.items()
        if not labels
    ]
    labels = [] if left_out else sorted(set().union(*classes.values()))
    of_images = [(name, None) for name, figure in FIGURES.items() if not figure.of_lesions]
    of_lesions = [(name, label) for label in labels for name, figure in FIGURES.items() if figure.of_lesions]
    of_lesions = [(name, label) for name, label in of_lesions if not (paired and FIGURES[name].of_masks)]
    return [*of_images, *of_lesions], left_out


def classes_with_lesions(measured: Measured) -> set[str]:
    """The classes with an image whose lesion is large enough to measure."""
    known = np.isfinite(measured.of("lesion_contrast"))
    return {label for label, has_lesion in zip(measured.labels, known, strict=True) if has_lesion}
