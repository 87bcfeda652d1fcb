"""The command realism: real images against generated ones, or against their own reconstructions; prints JSON."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ldm_us.data.records import Record
from ldm_us.evaluation.difference import scipy_stats
from ldm_us.evaluation.realism.comparison import LEAST, FigureTest, compare
from ldm_us.evaluation.realism.measures import BINS, Measured, measure_reconstructions, measure_set
from ldm_us.evaluation.realism.picture import draw_realism
from ldm_us.evaluation.realism.speckle import DYNAMIC_RANGE, SMALLEST_SIZE
from ldm_us.evaluation.realism.table import artefact_test_as_json, as_markdown, describe_set, figure_test_as_json, how
from ldm_us.evaluation.results import check_out
from ldm_us.evaluation.sets.image_sets import (
    Independent,
    check_enough,
    check_sets,
    one_per_family,
    read_set,
    shared_classes,
)
from ldm_us.files.atomic import sha256_file, write_text
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import save_png
from ldm_us.runtime.checks import check_finite

FILES = ("realism.json", "realism.md", "realism.png")


class Sets(NamedTuple):
    """Both sets as they are compared."""

    measured: tuple[Measured, Measured]
    images: tuple[int, int]  # in all, before one of each family was taken
    size: int  # pixels along a side
    left_out: list[str]  # a sentence each


def add_realism_command(commands: Any) -> None:
    """Describe the command to the subparsers of `python -m ldm_us.evaluation`."""
    command = commands.add_parser("realism", help="speckle, depth, lesions of samples against those of real images")
    command.set_defaults(run=run_realism)
    add = command.add_argument
    add("--real", type=Path, nargs="+", required=True, metavar="DIR", help="datasets")
    other = command.add_mutually_exclusive_group(required=True)
    other.add_argument("--generated", type=Path, nargs="+", metavar="DIR", help="folders of samples, or datasets")
    other.add_argument(
        "--reconstructions", type=Path, metavar="FILE", help="instead: what this model's VAE makes of --real"
    )
    add("--size", type=int, metavar="PIXELS", help="resize to this side (that of all images, or of the model)")
    add("--dynamic-range", type=float, default=DYNAMIC_RANGE, metavar="DB", help="of the display (%(default)s)")
    add("--device", default="cpu", help="(%(default)s)")
    add("--out", type=Path, metavar="FOLDER", help=f"write {', '.join(FILES)} there")
    add("--overwrite", action="store_true", help="replace these files")


def run_realism(options: argparse.Namespace) -> int:
    """Measure, compare, print JSON; with --out also write it, a table and a picture."""
    check_realism_options(options)
    real, dynamic_range, weights = read_set(options.real), options.dynamic_range, options.reconstructions
    paired = weights is not None
    if paired:
        sets = measure_pairs(real, weights, options.size, dynamic_range, options.device)
        source: dict[str, Any] = {"weights": str(weights), "weights_sha256": sha256_file(weights)}
    else:
        sets = measure_both(real, read_set(options.generated), options.size, dynamic_range)
        source = {"folders": list(map(str, options.generated))}
    figures, artefacts, missing = compare(*sets.measured, paired)
    compared = "reconstructed" if paired else "generated"
    described = [describe_set(*one) for one in zip(sets.measured, sets.images, strict=True)]
    result = {
        "compared": compared,
        "size": sets.size,
        "assumed_dynamic_range_db": dynamic_range,
        "gcnr_bins": BINS,
        "how": how(paired, dynamic_range, len(figures) + len(artefacts)),
        "real": {"folders": list(map(str, options.real))} | described[0],
        compared: source | described[1],
        "figures": [figure_test_as_json(test, paired) for test in figures],
        "artefact_tests": [artefact_test_as_json(test) for test in artefacts],
        "left_out": sets.left_out + missing,
    }
    if options.out is not None:
        write_realism(options.out, result, figures)
    print(json.dumps(result, indent=2))
    return 0


def check_realism_options(options: argparse.Namespace) -> None:
    """Raise ValueError for what can be refused before an image is opened."""
    check_finite({"dynamic_range": options.dynamic_range})
    if options.dynamic_range <= 0:
        raise ValueError(f"--dynamic-range {options.dynamic_range:g}: use more than 0 dB; scanners show 40 to 80.")
    if options.size is not None:
        check_speckle_size(options.size)
    check_out(options.out, FILES, options.overwrite)
    scipy_stats()


def check_speckle_size(size: int) -> None:
    """Raise ValueError for images too small to have speckle."""
    if size < SMALLEST_SIZE:
        raise ValueError(f"--size {size}: speckle is measured at {SMALLEST_SIZE} pixels and more. Use a larger size.")


def measure_both(real: Sequence[Record], generated: Sequence[Record], size: int | None, dynamic_range: float) -> Sets:
    """Measure both sets at one size, one image of each family, in the classes that both have."""
    size = check_sets(real, generated, size)
    check_speckle_size(size)
    classes = shared_classes(real, generated)
    independent: list[Independent] = []
    left_out: list[str] = []
    for option, records in (("--real", real), ("--generated", generated)):
        for label, count in sorted(Counter(r.label for r in records if r.label not in classes).items()):
            left_out.append(f"{count} {label} images of {option}: the other set has no {label} images.")
        one = one_per_family([record for record in records if record.label in classes])
        check_enough(one.records, LEAST, f"{option}, near-duplicates counted once", "a distribution")
        left_out += mixed_families(option, one)
        independent.append(one)
    with tqdm(total=sum(len(one.records) for one in independent), unit="image", desc="measuring", delay=0.1) as bar:
        first, second = (measure_set(one.records, size, dynamic_range, bar.update) for one in independent)
    return Sets((first, second), (len(real), len(generated)), size, left_out)


def measure_pairs(real: Sequence[Record], weights: Path, size: int | None, dynamic_range: float, device: str) -> Sets:
    """Measure each image and what the autoencoder makes of it, one image of each family."""
    check_enough(real, LEAST, "--real", "a distribution")
    model = load_model(weights, device=device)
    size, factor = size or model.config.image_size, model.config.vae.downsampling
    check_speckle_size(size)
    if size % factor:
        raise ValueError(f"--size {size}: this autoencoder needs a multiple of {factor}. Use {size - size % factor}.")
    independent = one_per_family(real)
    check_enough(independent.records, LEAST, "--real, near-duplicates counted once", "a distribution")
    with tqdm(total=len(independent.records), unit="image", desc="measuring", delay=0.1) as bar:
        measured = measure_reconstructions(independent.records, model, size, dynamic_range, bar.update)
    return Sets(measured, (len(real), len(real)), size, mixed_families("--real", independent))


def mixed_families(option: str, independent: Independent) -> list[str]:
    """A sentence where families were left out."""
    if independent.mixed == 0:
        return []
    return [f"{independent.mixed} families of {option}: their near-duplicate images have different classes."]


def write_realism(out: Path, result: dict[str, Any], figures: Sequence[FigureTest]) -> None:
    """Write the three files, each of them whole."""
    out.mkdir(parents=True, exist_ok=True)
    compared = result["compared"]
    names = (f"{result['real']['measured']:,} real", f"{result[compared]['measured']:,} {compared}")
    effect = "mean difference" if compared == "reconstructed" else "Cliff's delta"
    note = f"under each title: {effect} [95 %], corrected p; vertical lines: medians; outer bins: all beyond"
    picture = draw_realism(figures, f"Real and {compared} images, {result['size']}x{result['size']}", names, note)
    save_png(picture, out / FILES[2])
    for name, text in ((FILES[0], json.dumps(result, indent=2) + "\n"), (FILES[1], as_markdown(result, figures))):
        write_text(out / name, text)
