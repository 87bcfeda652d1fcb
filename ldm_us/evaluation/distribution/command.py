"""The command distribution: how far a set of generated images lies from a set of real ones, and how diverse it is.

No distance means anything by itself: it depends on the features, the number of images and the shares of the classes.
So the result names the features, and measures the same between two halves of the real set, beside as many generated
images against the first half.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.organ import UNKNOWN
from ldm_us.data.records import Record
from ldm_us.data.split import split_by_group
from ldm_us.evaluation.distribution.distances import NEEDED, distances
from ldm_us.evaluation.distribution.diversity import diversity, scales_at
from ldm_us.evaluation.distribution.features import Features, count_seen_in_training, extract, load_features
from ldm_us.evaluation.results import check_out, keep
from ldm_us.evaluation.sets.image_sets import check_enough, check_sets, read_set
from ldm_us.runtime.checks import check_extra

RESULT = "distribution.json"
SHARE_APART = 0.05  # of a class in the two sets, above which a note says so


def run_distribution(options: argparse.Namespace) -> int:
    """Print the figures as JSON, and write them where asked."""
    check_extra("eval", "sklearn", "scipy", "torchmetrics")
    check_out(options.out, [RESULT], options.overwrite)
    real, generated = same_classes(read_set(options.real), read_set(options.generated))
    size = check_sets(real, generated, options.size)
    scales = scales_at(size)
    for metric, needed in NEEDED.items():
        check_enough(real, needed, "--real", metric)
        check_enough(generated, needed, "--generated", metric)
    features = load_features(options.features, options.weights, options.network, options.device)
    with tqdm(total=len(real) + len(generated), unit="image", desc="features", delay=0.1) as bar:
        x, y = (
            extract(features, records, size, options.batch, options.device, bar.update) for records in (real, generated)
        )
    result = {
        "features": features.about | {"dimension": x.shape[1]},
        "size": size,
        "seed": options.seed,
        "images": {"real": counts(real), "generated": counts(generated)},
        **distances(x, y, options.seed),
        "halves": halves(real, x, y, options.seed),
        "classes": class_distances(real, generated, x, y, options.seed),
        "ms_ssim_within_class": {
            "scales": scales,
            "real": diversity(real, size, options.batch, options.seed),
            "generated": diversity(generated, size, options.batch, options.seed),
        },
        "notes": notes(features, real, generated, x.shape[1]),
    }
    return keep(result, options.out, RESULT, finite=True)


def same_classes(real: list[Record], generated: list[Record]) -> tuple[list[Record], list[Record]]:
    """Both sets with the same classes: their own, or one unknown class for all where a set tells none of its own.

    Raise ValueError for a class that one set has and the other has not.
    """
    sets = {"--real": real, "--generated": generated}
    known = {option: {record.label for record in records} for option, records in sets.items()}
    if {UNKNOWN} in known.values():
        real, generated = ([replace(record, label=UNKNOWN) for record in records] for records in sets.values())
        return real, generated
    for option, other in (("--real", "--generated"), ("--generated", "--real")):
        missing = sorted(known[other] - known[option])
        if missing and sets[option]:
            raise ValueError(
                f"{option}: no image of class {', '.join(missing)}, but {other} has some. Give two sets of the same "
                "classes: a class that is missing would count as a distance."
            )
    return real, generated


def counts(records: Sequence[Record]) -> dict[str, int]:
    """Images in all and of each class."""
    return {"all": len(records)} | dict(sorted(Counter(record.label for record in records).items()))


def halves(real: Sequence[Record], x: Tensor, y: Tensor, seed: int) -> dict[str, Any]:
    """The floor: one half of the real images against the other, and against as many generated ones.

    A family of near-duplicates, a patient or a case is on one side. The second half and the generated images are cut,
    at random, to the number of the smaller, since FID, recall and coverage depend on it.
    """
    about = "a half of the real images against n of the other half, and against n generated ones"
    sides = split_by_group(merge_families(real), 0.5, seed)
    row = {record.image: i for i, record in enumerate(real)}
    first, second = (torch.tensor([row[record.image] for record in side], dtype=torch.long) for side in sides)
    n = min(len(second), len(y))
    if min(len(first), n) < max(NEEDED.values()):
        needed = f"{max(NEEDED.values())} each are needed"
        return {"about": about, "left_out": f"{len(first)} images in one half and {n} in the other, but {needed}."}
    generator = torch.Generator().manual_seed(seed)
    cut = [vectors[torch.randperm(len(vectors), generator=generator)[:n]] for vectors in (x[second], y)]
    return {
        "about": about,
        "half": len(first),
        "n": n,
        "real": distances(x[first], cut[0], seed),
        "generated": distances(x[first], cut[1], seed),
    }


def class_distances(
    real: Sequence[Record], generated: Sequence[Record], x: Tensor, y: Tensor, seed: int
) -> dict[str, dict[str, Any]]:
    """The distances of each class, without FID, which needs more images than a class has; or why they are left out."""
    result = {}
    for label in sorted({record.label for record in real}):
        rows = [[i for i, record in enumerate(records) if record.label == label] for records in (real, generated)]
        try:
            for option, members in zip(("--real", "--generated"), rows, strict=True):
                for metric, needed in NEEDED.items():
                    check_enough([real[0]] * len(members), needed, f"{option}, {label}", metric)
            result[label] = distances(x[rows[0]], y[rows[1]], seed, frechet=False)
        except ValueError as reason:
            result[label] = {"left_out": str(reason)}
    return result


def notes(features: Features, real: Sequence[Record], generated: Sequence[Record], width: int) -> list[str]:
    """What a reader of the figures must know."""
    said = []
    n = min(len(real), len(generated))
    if n <= width:
        said.append(
            f"FID: {n} images are no more than the {width} dimensions of the features, so a covariance is singular and "
            f"FID too high. Use more than {width} images of each set, or read KID; compare FID at equal n alone, as in "
            "halves."
        )
    for label, count in sorted(Counter(record.label for record in real).items()):
        shares = count / len(real), sum(record.label == label for record in generated) / len(generated)
        if abs(shares[0] - shares[1]) > SHARE_APART:
            said.append(
                f"{label} is {shares[0]:.0%} of the real and {shares[1]:.0%} of the generated images: the figures over "
                "all classes count that as a distance. Sample in the shares of --real, or read the classes."
            )
    seen = count_seen_in_training(features, real)
    if seen:
        said.append(
            f"{seen} of the {len(real)} real images trained the network of the features. It may tell them from any "
            "others, so distances may be too high. Train it on other images."
        )
    if features.about["kind"] == "judge":
        said.append(
            "Features of a judge are blind to grain: it was trained on blurred images too. The two-sample test of the "
            "command realism sees grain."
        )
    if features.about["kind"] == "vae":
        said.append(
            "Features of an autoencoder are blind to what it does not encode: where it is that of the generator, its "
            "own blur does not count. Compare with features of another network."
        )
    return said
