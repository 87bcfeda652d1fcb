"""The command realism: real images against generated ones, or against their own reconstructions; prints JSON."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm_us.evaluation.difference import scipy_stats
from ldm_us.evaluation.realism.comparison import (
    LEAST,
    ArtefactTest,
    Row,
    artefact_test_as_json,
    artefacts,
    compare,
    row_as_json,
)
from ldm_us.evaluation.realism.lesion_quality import BINS
from ldm_us.evaluation.realism.measures import Measured, measure_reconstructions, measure_set
from ldm_us.evaluation.realism.picture import draw_realism
from ldm_us.evaluation.realism.speckle import DYNAMIC_RANGE, SMALLEST_SIZE
from ldm_us.evaluation.realism.table import as_markdown
from ldm_us.evaluation.sets.image_sets import (
    Independent,
    check_enough,
    check_sets,
    one_per_family,
    read_set,
    shared_classes,
)
from ldm_us.files.atomic import atomic_file, sha256_file
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import save_png
from ldm_us.runtime.checks import check_finite

FILES = ("realism.json", "realism.md", "realism.png")


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
    real = read_set(options.real)
    if options.reconstructions is None:
        result, rows = compare_generated(options, real)
    else:
        result, rows = compare_reconstructions(options, real)
    if options.out is not None:
        write_realism(options.out, result, rows)
    print(json.dumps(result, indent=2))
    return 0


def check_realism_options(options: argparse.Namespace) -> None:
    """Raise ValueError for what can be refused before an image is opened."""
    check_finite({"dynamic_range": options.dynamic_range})
    if options.dynamic_range <= 0:
        raise ValueError(f"--dynamic-range {options.dynamic_range:g}: use more than 0 dB; scanners show 40 to 80.")
    if options.size is not None:
        check_speckle_size(options.size)
    if options.out is not None:
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out {options.out}: exists and is not a folder. Choose another name.")
        found = [name for name in FILES if (options.out / name).exists()]
        if found and not options.overwrite:
            raise ValueError(f"--out {options.out}: has {found[0]} already. Choose another folder, or add --overwrite.")
    scipy_stats()


def check_speckle_size(size: int) -> None:
    """Raise ValueError for images too small to have speckle."""
    if size < SMALLEST_SIZE:
        raise ValueError(f"--size {size}: speckle is measured at {SMALLEST_SIZE} pixels and more. Use a larger size.")


def compare_generated(options: argparse.Namespace, real: Sequence[Any]) -> tuple[dict[str, Any], list[Row]]:
    """Measure both sets at one size, one image of each family, in the classes that both have."""
    generated = read_set(options.generated)
    size = check_sets(real, generated, options.size)
    check_speckle_size(size)
    classes = shared_classes(real, generated)
    sets, measured, left_out = [], [], []
    for option, records in (("--real", real), ("--generated", generated)):
        own = [record for record in records if record.label in classes]
        for label, count in sorted(Counter(r.label for r in records if r.label not in classes).items()):
            left_out.append(f"{count} {label} images of {option}: the other set has no {label} images.")
        independent = one_per_family(own)
        independent = replace(independent, images=len(records))
        check_enough(independent.records, LEAST, f"{option}, near-duplicates counted once", "a distribution")
        left_out += mixed_families(option, independent)
        sets.append(independent)
    with tqdm(total=sum(len(one.records) for one in sets), unit="image", desc="measuring", delay=0.1) as bar:
        for one in sets:
            measured.append(measure_set(one.records, size, options.dynamic_range, bar.update))
    rows, tests, missing = compare(measured[0], measured[1], paired=False)
    described = [
        {"folders": list(map(str, folders)), **describe_set(one, own)}
        for folders, one, own in zip((options.real, options.generated), sets, measured, strict=True)
    ]
    return as_result(options, size, described, rows, tests, left_out + missing), rows


def compare_reconstructions(options: argparse.Namespace, real: Sequence[Any]) -> tuple[dict[str, Any], list[Row]]:
    """Measure each image and what the autoencoder makes of it, one image of each family."""
    check_enough(real, LEAST, "--real", "a distribution")
    model = load_model(options.reconstructions, device=options.device)
    size, factor = options.size or model.config.image_size, model.config.vae.downsampling
    check_speckle_size(size)
    if size % factor:
        raise ValueError(f"--size {size}: this autoencoder needs a multiple of {factor}. Use {size - size % factor}.")
    independent = one_per_family(real)
    check_enough(independent.records, LEAST, "--real, near-duplicates counted once", "a distribution")
    with tqdm(total=len(independent.records), unit="image", desc="measuring", delay=0.1) as bar:
        measured = measure_reconstructions(independent.records, model, size, options.dynamic_range, bar.update)
    rows, tests, missing = compare(*measured, paired=True)
    described = [
        {"folders": list(map(str, options.real)), **describe_set(independent, measured[0])},
        {
            "weights": str(options.reconstructions),
            "weights_sha256": sha256_file(options.reconstructions),
            **describe_set(independent, measured[1]),
        },
    ]
    left_out = mixed_families("--real", independent) + missing
    return as_result(options, size, described, rows, tests, left_out), rows


def mixed_families(option: str, independent: Independent) -> list[str]:
    """A sentence where families were left out."""
    if independent.mixed == 0:
        return []
    return [f"{independent.mixed} families of {option}: their near-duplicate images have different classes."]


def describe_set(independent: Independent, measured: Measured) -> dict[str, Any]:
    """How many images there are, how many were measured, and their artefacts."""
    return {
        "images": independent.images,
        "measured": len(independent.records),
        "by_class": dict(sorted(Counter(measured.labels).items())),
        "artefacts": artefacts(measured),
    }


def as_result(
    options: argparse.Namespace,
    size: int,
    described: list[dict[str, Any]],
    rows: list[Row],
    tests: list[ArtefactTest],
    left_out: list[str],
) -> dict[str, Any]:
    """All of it, ready for JSON."""
    paired = options.reconstructions is not None
    compared = "reconstructed" if paired else "generated"
    return {
        "compared": compared,
        "size": size,
        "assumed_dynamic_range_db": options.dynamic_range,
        "gcnr_bins": BINS,
        "how": how(paired, options.dynamic_range, len(rows) + len(tests)),
        "real": described[0],
        compared: described[1],
        "figures": [row_as_json(row, paired) for row in rows],
        "artefact_tests": [artefact_test_as_json(test) for test in tests],
        "left_out": left_out,
    }


def how(paired: bool, dynamic_range: float, tests: int) -> str:
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
        f"{dynamic_range:g} dB: try other ranges, for a difference at one of them alone is none of the speckle. Whole "
        "images are resized to squares, so a pixel is no length."
    )


def write_realism(out: Path, result: dict[str, Any], rows: list[Row]) -> None:
    """Write the three files, each of them whole."""
    out.mkdir(parents=True, exist_ok=True)
    compared = result["compared"]
    names = (f"{result['real']['measured']:,} real", f"{result[compared]['measured']:,} {compared}")
    effect = "mean difference" if compared == "reconstructed" else "Cliff's delta"
    note = f"under each title: {effect} [95 %], corrected p; vertical lines: medians; outer bins: all beyond"
    picture = draw_realism(rows, f"Real and {compared} images, {result['size']}x{result['size']}", names, note)
    save_png(picture, out / FILES[2])
    for name, text in ((FILES[0], json.dumps(result, indent=2) + "\n"), (FILES[1], as_markdown(result, rows))):
        with atomic_file(out / name) as file:
            file.write(text.encode())
