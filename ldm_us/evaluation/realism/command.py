"""The command realism: real images against generated ones, or against their own reconstructions; prints JSON."""

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm_us.data.framing import KEPT, Framing
from ldm_us.data.records import Record, spacing_notes, trained_framing
from ldm_us.evaluation.difference import scipy_stats
from ldm_us.evaluation.realism.comparison import LEAST, FigureTest, compare
from ldm_us.evaluation.realism.crops import CROP
from ldm_us.evaluation.realism.measures import BINS, Measured, measure
from ldm_us.evaluation.realism.picture import draw_realism
from ldm_us.evaluation.realism.speckle import SMALLEST_SIZE
from ldm_us.evaluation.realism.table import (
    artefact_test_as_json,
    as_markdown,
    bound_sentences,
    describe_set,
    figure_test_as_json,
    how,
    width_sentences,
)
from ldm_us.evaluation.realism.two_sample import two_sample_tests
from ldm_us.evaluation.results import check_out, keep
from ldm_us.evaluation.sets.image_sets import (
    check_enough,
    check_sets,
    one_per_family,
    read_set,
    shared_classes,
    size_of,
    squashed,
)
from ldm_us.files.atomic import sha256_file, write_text
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.pictures import save_png
from ldm_us.runtime.checks import check_finite
from ldm_us.training.reconstruction import reconstruct

FILES = ("realism.json", "realism.md", "realism.png")


def run_realism(options: argparse.Namespace) -> int:
    """Measure, compare, print JSON; with --out also write it, a table and a picture."""
    check_finite({"dynamic_range": options.dynamic_range})
    if options.dynamic_range <= 0:
        raise ValueError(f"--dynamic-range {options.dynamic_range:g}: use more than 0 dB; scanners show 40 to 80.")
    check_speckle_size(options.size)
    check_out(options.out, FILES, options.overwrite)
    scipy_stats()
    real, dynamic_range, weights = read_set(options.real), options.dynamic_range, options.reconstructions
    paired, left_out = weights is not None, [f"--real: {note}." for note in spacing_notes(real)]
    if paired:
        images = len(real), len(real)
        framing, measured = measure_pairs(real, weights, options.size, dynamic_range, options.device, left_out)
        source: dict[str, Any] = {"weights": str(weights), "weights_sha256": sha256_file(weights)}
    else:
        generated = read_set(options.generated)
        images = len(real), len(generated)
        rule = "squash" if squashed(options.generated) else KEPT
        framing, measured = measure_both(real, generated, options.size, rule, dynamic_range, left_out)
        source = {"folders": list(map(str, options.generated))}
    figures, artefacts, missing = compare(*measured, paired)
    compared = "reconstructed" if paired else "generated"
    two_sample = tell_apart(*measured, options, left_out) if options.two_sample else None
    described = [describe_set(*one) for one in zip(measured, images, strict=True)]
    result = {
        "compared": compared,
        "size": framing.side,
        "aspect": framing.rule,
        "assumed_dynamic_range_db": dynamic_range,
        "gcnr_bins": BINS,
        "how": how(paired, dynamic_range, len(figures) + len(artefacts), framing.rule),
        "real": {"folders": list(map(str, options.real))} | described[0],
        compared: source | described[1],
        "figures": [figure_test_as_json(test) for test in figures],
        "artefact_tests": [artefact_test_as_json(test) for test in artefacts],
        "two_sample": two_sample,
        "bounds": bound_sentences(figures),
        "widths": width_sentences("real", described[0]) + width_sentences(compared, described[1]),
        "left_out": left_out + missing,
    }
    if options.out is not None:
        write_realism(options.out, result, figures)
    return keep(result, options.out, FILES[0])


def tell_apart(
    real: Measured, other: Measured, options: argparse.Namespace, left_out: list[str]
) -> dict[str, Any] | None:
    """The two-sample test of both sets, and of the halves of the real one; None, and a sentence, for too few images."""
    steps, seed = options.two_sample_steps, options.seed
    try:
        with tqdm(total=2 * steps, unit="step", desc="two-sample test", delay=0.1) as bar:
            against, of_halves = two_sample_tests(real, other, steps, seed, bar.update)
    except ValueError as error:
        left_out.append(f"Two-sample test: {error}")
        return None
    return {"crop": CROP, "steps": steps, "seed": seed, "against_real": against, "real_halves": of_halves}


def check_speckle_size(size: int | None) -> None:
    """Raise ValueError for images too small to have speckle."""
    if size is not None and size < SMALLEST_SIZE:
        raise ValueError(f"--size {size}: speckle is measured at {SMALLEST_SIZE} pixels and more. Use a larger size.")


def measure_both(
    real: Sequence[Record],
    generated: Sequence[Record],
    size: int | None,
    rule: str,
    dynamic_range: float,
    left_out: list[str],
) -> tuple[Framing, tuple[Measured, Measured]]:
    """Measure both sets at one size by one rule, one image of each family, in the classes that both have."""
    framing = Framing(check_sets(real, generated, size), rule)
    check_speckle_size(framing.side)
    if rule == "squash" and any(width != height for width, height in map(size_of, real)):
        left_out.append(
            "The aspect of --generated: its model was trained on images squashed to squares, and what they would be "
            "unsquashed is not known. So the real images are squashed too: grains and lesions have no true widths here."
        )
    classes = shared_classes(real, generated)
    sets = []
    for option, records in (("--real", real), ("--generated", generated)):
        for label, count in sorted(Counter(r.label for r in records if r.label not in classes).items()):
            left_out.append(f"{count} {label} images of {option}: the other set has no {label} images.")
        sets.append(independent([record for record in records if record.label in classes], option, left_out))
    with tqdm(total=sum(map(len, sets)), unit="image", desc="measuring", delay=0.1) as bar:
        first, second = (measure(records, framing, dynamic_range, bar.update)[0] for records in sets)
    return framing, (first, second)


def measure_pairs(
    real: Sequence[Record], weights: Path, size: int | None, dynamic_range: float, device: str, left_out: list[str]
) -> tuple[Framing, tuple[Measured, Measured]]:
    """Measure each image and what the autoencoder makes of it, one image of each family."""
    model = load_model(weights, device=device)
    trained, factor = trained_framing(read_metadata(weights), model.config), model.config.vae.downsampling
    size = size or trained.side
    check_speckle_size(size)
    if size % factor:
        raise ValueError(f"--size {size}: this autoencoder needs a multiple of {factor}. Use {size - size % factor}.")
    records = independent(real, "--real", left_out)
    with tqdm(total=len(records), unit="image", desc="measuring", delay=0.1) as bar:
        framing = trained._replace(side=size)
        return framing, measure(records, framing, dynamic_range, bar.update, partial(reconstruct, model))


def independent(records: Sequence[Record], option: str, left_out: list[str]) -> list[Record]:
    """One image of each family, with a sentence more where families were left out."""
    kept, mixed = one_per_family(records)
    check_enough(kept, LEAST, f"{option}, near-duplicates counted once", "a distribution")
    if mixed:
        left_out.append(f"{mixed} families of {option}: their near-duplicate images have different classes.")
    return kept


def write_realism(out: Path, result: dict[str, Any], figures: Sequence[FigureTest]) -> None:
    """Write the picture and the table."""
    out.mkdir(parents=True, exist_ok=True)
    compared = result["compared"]
    names = (f"{result['real']['measured']:,} real", f"{result[compared]['measured']:,} {compared}")
    effect = "mean difference" if compared == "reconstructed" else "Cliff's delta"
    note = f"under each title: {effect} [95 %], corrected p; vertical lines: medians; outer bins: all beyond"
    size = f"{result['size']}x{result['size']}{'' if result['aspect'] == 'squash' else ' in area'}"
    picture = draw_realism(figures, f"Real and {compared} images, {size}", names, note)
    save_png(picture, out / FILES[2])
    write_text(out / FILES[1], as_markdown(result, figures))
