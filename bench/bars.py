"""The bars of the bundled model: one table of what was measured, and whether it passes.

    python bench/bars.py runs/bundled/bars

Reads what the evaluation commands of `make bars` wrote into one folder. A miss is a figure and no error: the exit code
is 0 whether or not every bar is passed. What no command has measured is no pass either.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/bars.py")
    about = "The bars of the bundled model: one table of what the evaluation commands of `make bars` measured, "
    about += "and whether it passes. A miss is a figure and no error. Nothing is written."
    describe(parser, about, "runs/bundled/bars")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the results lie")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from ldm_us.evaluation.results import read_json
from ldm_us.runtime.entry import run_command

RESULTS = (  # below the folder
    "reconstruction.json",
    "classes.json",
    "masks.json",
    "realism_samples/realism.json",
    "realism_reconstructed/realism.json",
    "memorisation/memorisation.json",
)
BANDS = range(1, 9)  # of depth
TOLERANCE = 1e-9  # an edge that is computed is that edge


@dataclass(frozen=True)
class Bar:
    """What must lie between two values, edges included, unless only what is below the upper one passes."""

    what: str
    measured: float
    low: float | None = None
    high: float | None = None
    below: bool = False  # the upper edge itself is a miss
    unit: str = ""
    digits: int = 2

    @property
    def passed(self) -> bool:
        """Whether the measured value is where it must be; nan, of what was not measured, is not."""
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        under = self.measured < high if self.below else self.measured <= high + TOLERANCE
        return self.measured >= low - TOLERANCE and under

    @property
    def wanted(self) -> str:
        """The bar, in words."""
        low, high = (None if edge is None else f"{edge:.{self.digits}f}" for edge in (self.low, self.high))
        if low is not None and high is not None:
            return f"{low} to {high}{self.unit}"
        return f">= {low}{self.unit}" if low is not None else f"{'<' if self.below else '<='} {high}{self.unit}"

    def __str__(self) -> str:
        """A row in Markdown, padded so that a terminal shows columns."""
        known = not math.isnan(self.measured)
        measured = f"{self.measured:.{self.digits}f}{self.unit}" if known else "-"
        verdict = "pass" if self.passed else "MISS" if known else "not measured"
        return f"| {self.what:<46} | {self.wanted:<19} | {measured:>9} | {verdict:<12} |"


def bars(results: Mapping[str, Any], weights: float) -> list[Bar]:
    """All bars; `weights`: megabytes of the files of the package."""
    samples, reconstructed = (results[f"realism_{kind}/realism.json"] for kind in ("samples", "reconstructed"))
    own, others = (value(results["masks.json"], "dice", mask, "all", "mean") for mask in ("true", "shuffled"))
    named = value(results["classes.json"], "accuracy", "all", "share")
    copied = value(results["memorisation/memorisation.json"], "flagged", "any", "share")
    auc = ("two_sample", "against_real", "auc")
    return [
        *speckle_bars(samples),
        *grey_bars(samples),
        Bar("two-sample AUC, reconstructions with grain", value(reconstructed, *auc), high=0.65),
        Bar("two-sample AUC, samples", value(samples, *auc), high=0.75),
        Bar("class named as asked", 100 * named, low=90, unit=" %", digits=1),
        Bar("Dice of the lesion with its own mask", own, low=0.85, digits=3),
        Bar("Dice of the lesion with another's mask", others, high=0.30, below=True, digits=3),
        Bar("PSNR of the autoencoder", value(results["reconstruction.json"], "psnr_db", "mean"), low=27, unit=" dB"),
        Bar("samples flagged as copies", 100 * copied, high=3, unit=" %", digits=1),
        Bar("weights of the package", weights, high=20, unit=" MB"),
    ]


def speckle_bars(realism: Any) -> list[Bar]:
    """Medians of the samples' grain, beside those of the phantoms."""
    axial, lateral = (figure(realism, f"{side}_width", "generated", "median") for side in ("axial", "lateral"))
    detail, detail_real = (figure(realism, "detail", side, "median") for side in ("generated", "real"))
    m, m_real = (figure(realism, "nakagami_m", side, "median") for side in ("generated", "real"))
    return [
        Bar("grain, axial width", axial, 2.01, 2.23, unit=" px"),
        Bar("grain, lateral width", lateral, 4.8, 5.5, unit=" px"),
        Bar(f"fine detail, within 5 % of {detail_real:.1f}", detail, 0.95 * detail_real, 1.05 * detail_real),
        Bar(f"Nakagami m, within 0.2 of {m_real:.2f}", m, m_real - 0.2, m_real + 0.2),
    ]


def grey_bars(realism: Any) -> list[Bar]:
    """Mean grey of the bands of depth, beside that of the phantoms, and how much it varies from image to image."""
    rows = []
    for band in BANDS:
        mean, real = (figure(realism, f"depth_{band}", side, "mean") for side in ("generated", "real"))
        rows.append(Bar(f"grey of depth band {band}, within 8 of {real:.1f}", mean, real - 8, real + 8, digits=1))
    spread = figure(realism, "mean_grey", "generated", "sd")
    return [*rows, Bar("standard deviation of the images' mean grey", spread, 13, 19, digits=1)]


def figure(realism: Any, name: str, side: str, statistic: str) -> float:
    """A number of one side of a realism.json, over the images of all classes; nan where there is none."""
    for row in () if realism is None else realism["figures"]:
        if row["figure"] == name and row["class"] is None:
            return float(row[side][statistic])
    return math.nan


def value(result: Any, *keys: str) -> float:
    """What stands in a result under these keys; nan where there is no result, or a part of it was left out."""
    for key in keys:
        if result is None:
            return math.nan
        result = result[key]
    return float(result)


def main(argv: list[str] | None = None) -> int:
    """Print the table, and how many bars are passed."""
    folder = build_parser().parse_args(argv).folder
    results = {name: read_json(folder / name, "Delete it, and call `make bars`.") for name in RESULTS}
    weights = sum(path.stat().st_size for path in (ROOT / "ldm_us" / "weights").glob("*.safetensors")) / 1e6
    table = bars(results, weights)
    print(f"| {'what':<46} | {'bar':<19} | {'measured':>9} | {'':<12} |\n|---|---|---|---|", *table, sep="\n")
    missed = sum(not bar.passed for bar in table)
    print(f"\n{len(table) - missed} of {len(table)} bars passed. A miss is a figure, not an error.")
    for name in (name for name, result in results.items() if result is None):
        print(f"{folder / name}: no such file. `make bars` writes it.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
