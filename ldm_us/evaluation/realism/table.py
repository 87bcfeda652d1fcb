"""realism.json and realism.md: the comparison of two sets in numbers and as a table, with what they rest on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_us.data.framing import KEPT
from ldm_us.display.pages import environment
from ldm_us.evaluation.figures import share_of
from ldm_us.evaluation.realism.comparison import ArtefactTest, FigureTest, title_of
from ldm_us.evaluation.realism.measures import FIGURES, Measured

QUARTILES = (25, 50, 75)
SMALLEST_P = 0.001
SIZES_IN_WORDS = {  # by the rule of a Framing
    "squash": "Whole images are resized to squares, so a pixel is no length.",
    KEPT: "Images keep their aspects at one area: a pixel is as long across as down, but not in every image.",
}
WIDTHS = ("axial_width", "lateral_width")  # down, across
SIGN_IN_WORDS = {">= ": "lower bounds", "<= ": "upper bounds", "~ ": "bounds neither way"}


def describe_set(measured: Measured, images: int) -> dict[str, Any]:
    """How many images there are, how many were measured, and their artefacts: shares with 95 % intervals."""
    classes = dict(sorted(Counter(measured.labels).items()))
    corners = np.array(measured.black_corners)
    return {
        "images": images,
        "measured": len(measured.labels),
        "by_class": classes,
        "artefacts": {
            "black_upper_corners": {label: share_of(corners[measured.members(label)].tolist()) for label in classes},
            "not_grey": share_of([deviation > 0 for deviation in measured.grey_deviation]),
            "median_grey_deviation": float(np.median(measured.grey_deviation)),
            "largest_grey_deviation": max(measured.grey_deviation),
        },
        **widths_in_mm(measured),
    }


def widths_in_mm(measured: Measured) -> dict[str, Any]:
    """Both widths of the grain in millimetres, of the images of which the size of a pixel is known, if two are."""
    known = [(one, scale) for one, scale in zip(measured.figures, measured.scales, strict=True) if scale is not None]
    widths = {
        name: values[np.isfinite(values)]
        for axis, name in enumerate(WIDTHS)
        for values in [np.array([one[name] * scale[axis] for one, scale in known])]
    }
    if any(len(values) < 2 for values in widths.values()):
        return {}
    return {"widths_mm": {name: summary(values, np.inf) for name, values in widths.items()}}


def width_sentences(kind: str, described: dict[str, Any]) -> list[str]:
    """The same in words."""
    return [
        f"{FIGURES[name].title} of {of['n']} {kind} images, of which the size of a pixel is known: "
        f"{of['median']} mm ({of['quarter']} to {of['three_quarters']})."
        for name, of in described.get("widths_mm", {}).items()
    ]


def figure_test_as_json(test: FigureTest) -> dict[str, Any]:
    """Quartiles of both sets and the test."""
    difference = test.difference
    return {
        "figure": test.name,
        "class": test.label,
        "unit": FIGURES[test.name].unit,
        "real": summary(test.real, test.bound),
        "reconstructed" if test.paired else "generated": summary(test.other, test.bound),
        "mean_difference" if test.paired else "cliffs_delta": significant(difference.effect),
        "low": significant(difference.low),
        "high": significant(difference.high),
        "p": significant(difference.p, 2),
        "p_holm": significant(test.p_holm, 2),
    }


def bound_sentences(figures: Sequence[FigureTest]) -> list[str]:
    """What the values that are lower bounds make of the other numbers, for each figure that has such."""
    sentences = []
    for test in figures:
        if any(test.at_bound):
            counts = (
                f"{test.at_bound[0]} real and {test.at_bound[1]} other values are lower bounds, {test.bound:g} pixels"
            )
            effect = (
                f"the mean difference and its interval are {SIGN_IN_WORDS[bound_sign(test)]}"
                if test.paired
                else "in Cliff's delta two bounds are a tie"
            )
            sentences.append(f"{title_of(test.name, test.label)}: {counts}; so are means with them, and {effect}.")
    return sentences


def bound_sign(test: FigureTest) -> str:
    """What stands before a mean difference of pairs: >= where the others have lower bounds, <= the real, ~ both."""
    real, other = test.at_bound if test.paired else (0, 0)
    return "~ " if real and other else ">= " if other else "<= " if real else ""


def artefact_test_as_json(test: ArtefactTest) -> dict[str, Any]:
    """The test alone: the shares stand with their sets."""
    p, p_holm = significant(test.p, 2), significant(test.p_holm, 2)
    return {"artefact": test.name, "class": test.label, "p": p, "p_holm": p_holm}


def summary(values: np.ndarray, bound: float) -> dict[str, float]:
    """Number, median, quartiles, mean and standard deviation of the values, and how many are lower bounds, if any."""
    low, median, high = (significant(value) for value in np.percentile(values, QUARTILES))
    moments = {"mean": significant(values.mean()), "sd": significant(values.std(ddof=1))}
    at_bound = int((values >= bound).sum())
    return (
        {"n": len(values), "median": median, "quarter": low, "three_quarters": high}
        | moments
        | ({"lower_bounds": at_bound} if at_bound else {})
    )


def significant(value: float, digits: int = 4) -> float:
    """The number with so many digits that mean something."""
    return float(f"{value:.{digits}g}")


def how(paired: bool, dynamic_range: float, tests: int, rule: str) -> str:
    """What the numbers rest on, in sentences for the reader of the table."""
    test = (
        "Wilcoxon's signed rank test of pairs; the difference is reconstruction minus image, its interval a bootstrap. "
        "Black corners: McNemar's exact test."
        if paired
        else "Mann-Whitney test; Cliff's delta is above 0 where generated images have the larger value, its interval a "
        "bootstrap. Images of a class are compared with those of the same class, and the classes averaged in their "
        "shares of the real set, so that another mix is no difference; medians are those of the sets as they are. "
        "Black corners: Fisher's exact test."
    )
    return (
        f"{test} p is corrected for {tests} tests (Holm); with many images it is small for differences that nobody "
        "sees, so read the effect. One image of each family of near-duplicates. Nakagami m and SNR assume a display of "
        f"{dynamic_range:g} dB: try other ranges, for a difference at one of them alone is none of the speckle. "
        f"{SIZES_IN_WORDS.get(rule, SIZES_IN_WORDS[KEPT])}"
    )


def as_markdown(result: dict[str, Any], figures: Sequence[FigureTest]) -> str:
    """The whole page: which sets, a line for every figure, artefacts, what was left out and how to read it."""
    other = result["compared"]
    template = environment().get_template("ldm_us/evaluation/realism/realism.md")
    page = template.render(
        result=result,
        other=other,
        effect="Mean difference" if other == "reconstructed" else "Cliff's delta",
        figures=[figure_cells(test) for test in figures],
        two_sample=two_sample_cells(result["two_sample"], other),
        artefacts=artefact_cells(result, other),
    )
    return page.rstrip() + "\n"


def figure_cells(test: FigureTest) -> list[str]:
    """One figure of both sets, as medians and quartiles such as 12.3 (10.1 to 15.0)."""
    spreads = []
    for values in (test.real, test.other):
        low, median, high = (
            f">= {short(v)}" if v >= test.bound else short(v) for v in np.percentile(values, QUARTILES)
        )
        spreads.append(f"{median} ({low} to {high})")
    return [title_of(test.name, test.label), FIGURES[test.name].unit, *spreads, effect_text(test), p_text(test.p_holm)]


def effect_text(test: FigureTest) -> str:
    """The effect and its interval, as +0.42 [0.30, 0.53]; a bound as >= +0.42 [0.30, 0.53]."""
    difference = test.difference
    return f"{bound_sign(test)}{short(difference.effect, '+')} [{short(difference.low)}, {short(difference.high)}]"


def p_text(p: float) -> str:
    """The corrected p, as 0.03 or < 0.001."""
    return f"{p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P}"


def short(value: float, sign: str = "") -> str:
    """A number for a table: 104, 12.3, 0.42."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:{sign}.{digits}f}"


def two_sample_cells(result: dict[str, Any] | None, other: str) -> list[list[str]]:
    """The AUC of both two-sample tests, as 0.62 [0.58, 0.66], and the numbers of images."""
    rows = []
    for title, key in ((f"Real and {other}", "against_real"), ("Real and real: two halves", "real_halves")):
        if result is not None:
            test = result[key]
            images = (" and ".join(map(str, test[side])) for side in ("trained_on", "tested_on"))
            auc = f"{short(test['auc'])} [{short(test['low'])}, {short(test['high'])}]"
            rows.append([title, auc, "; ".join(images)])
    return rows


def artefact_cells(result: dict[str, Any], other: str) -> list[list[str]]:
    """Shares of images with each artefact, and the tests."""
    p = {(test["artefact"], test["class"]): p_text(test["p_holm"]) for test in result["artefact_tests"]}
    sets = [result[kind]["artefacts"] for kind in ("real", other)]
    corners = [one["black_upper_corners"] for one in sets]
    rows = []
    for label in sorted({*corners[0], *corners[1]}):
        shares = [share_text(one.get(label)) for one in corners]
        rows.append([f"Black upper corners, {label}", *shares, p.get(("black_upper_corners", label), "-")])
    channels = [f"{one['median_grey_deviation']:g} ({one['largest_grey_deviation']})" for one in sets]
    return [
        *rows,
        ["Not grey", *(share_text(one["not_grey"]) for one in sets), "-"],
        ["Largest difference of red, green and blue: median image (worst image)", *channels, p["grey_deviation", None]],
    ]


def share_text(share: dict[str, float] | None) -> str:
    """A share with its interval, as 10 of 145 (6.9 %, 3.8 to 12.2); a dash where the set has no such image."""
    if share is None:
        return "-"
    hits = round(share["share"] * share["n"])
    return f"{hits} of {share['n']} ({share['share']:.1%}, {share['low']:.1%} to {share['high']:.1%})"
