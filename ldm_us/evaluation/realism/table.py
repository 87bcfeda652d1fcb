"""realism.md: the comparison of two sets as a table in Markdown, with what it rests on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_us.evaluation.realism.comparison import QUARTILES, Row
from ldm_us.evaluation.realism.measures import FIGURES

SMALLEST_P = 0.001


def as_markdown(result: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole page: which sets, a line for every figure, artefacts, what was left out and how to read it."""
    other = result["compared"]
    effect = "Mean difference [95 %]" if other == "reconstructed" else "Cliff's delta [95 %]"
    lines = [
        "# Realism",
        "",
        f"{describe(result['real'], 'real')} {describe(result[other], other)} At {result['size']}x{result['size']}.",
        "",
        f"| Figure | Unit | Real | {other.capitalize()} | {effect} | p |",
        "|---|---|---|---|---|---|",
        *(table_line(row) for row in rows),
        "",
        "Median (quartiles) over the images. " + result["how"],
        "",
        f"| Artefact | Real | {other.capitalize()} | p |",
        "|---|---|---|---|",
        *artefact_lines(result, other),
        "",
        *(f"- {sentence}" for sentence in result["left_out"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def describe(one: dict[str, Any], kind: str) -> str:
    """How many images of which classes were measured."""
    classes = ", ".join(f"{count} {label}" for label, count in one["by_class"].items())
    return f"{one['measured']:,} {kind} images ({classes}), of {one['images']:,}."


def table_line(row: Row) -> str:
    """One figure."""
    cells = [
        row.title,
        FIGURES[row.name].unit,
        spread(row.real),
        spread(row.other),
        effect_text(row),
        p_text(row.p_holm),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: np.ndarray) -> str:
    """Median and quartiles, as 12.3 (10.1 to 15.0)."""
    low, median, high = (short(value) for value in np.percentile(values, QUARTILES))
    return f"{median} ({low} to {high})"


def effect_text(row: Row) -> str:
    """The effect and its interval, as +0.42 [0.30, 0.53]."""
    difference = row.difference
    return f"{short(difference.effect, '+')} [{short(difference.low)}, {short(difference.high)}]"


def p_text(p: float) -> str:
    """The corrected p, as 0.03 or < 0.001."""
    return f"{p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P}"


def short(value: float, sign: str = "") -> str:
    """A number for a table: 104, 12.3, 0.42."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:{sign}.{digits}f}"


def artefact_lines(result: dict[str, Any], other: str) -> list[str]:
    """Shares of images, as 10 of 145 (6.9 %, 3.8 to 12.2)."""
    p = {(test["artefact"], test["class"]): p_text(test["p_holm"]) for test in result["artefact_tests"]}
    sets = [result[kind]["artefacts"] for kind in ("real", other)]
    corners = [one["black_upper_corners"] for one in sets]
    lines = [
        f"| Black upper corners, {label} | "
        + " | ".join(share_text(one.get(label)) for one in corners)
        + f" | {p.get(('black_upper_corners', label), '-')} |"
        for label in sorted({*corners[0], *corners[1]})
    ]
    lines.append("| Not grey | " + " | ".join(share_text(one["not_grey"]) for one in sets) + " | - |")
    channels = [f"{one['median_grey_deviation']:g} ({one['largest_grey_deviation']})" for one in sets]
    kind = "Largest difference of red, green and blue: median image (worst image)"
    return [*lines, f"| {kind} | {' | '.join(channels)} | {p['grey_deviation', None]} |"]


def share_text(share: dict[str, float] | None) -> str:
    """A share with its interval; a dash where the set has no such image."""
    if share is None:
        return "-"
    hits = round(share["share"] * share["n"])
    return f"{hits} of {share['n']} ({share['share']:.1%}, {share['low']:.1%} to {share['high']:.1%})"
