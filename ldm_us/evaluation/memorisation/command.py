"""The command memorisation: which samples are copies of training images, and how well such copies would be found.

The audit measures itself on the same data: how many copies with noise, flip, crop and gain it finds (--planted), and
how many held-out images it takes for copies, as they are, through the model's autoencoder, and blurred. Prints JSON;
--out keeps it with a table of all samples and a picture.
"""

import argparse
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.records import Record
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import check_size
from ldm_us.evaluation.memorisation.closest_pairs import CLOSEST, NOTE, Pair, draw_pairs
from ldm_us.evaluation.memorisation.nearest_training import (
    RATIOS,
    SCORES,
    SEARCH,
    Described,
    Encode,
    Nearest,
    describe,
    nearest_of_stream,
)
from ldm_us.evaluation.memorisation.planted_copies import KINDS, OUTSIDE, blur, plant
from ldm_us.evaluation.memorisation.thresholds import (
    Thresholds,
    calibrate,
    calibration_fields,
    check_enough_images,
    count_copied,
    difference_of_shares,
    held_out_fields,
    latent_features,
    shares,
)
from ldm_us.evaluation.results import check_out, keep
from ldm_us.evaluation.sets.evaluated_images import lineage_split
from ldm_us.evaluation.sets.image_sets import check_sets, read_set, stream
from ldm_us.files.atomic import sha256_file, write_text
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import save_png
from ldm_us.runtime.checks import check_extra, check_finite
from ldm_us.training.cache import ENCODER, weights_hash
from ldm_us.training.dataset import data_hash
from ldm_us.training.reconstruction import reconstruct_grey

BATCH = 64  # images in memory at a time
REPORT, TABLE, PICTURE = "memorisation.json", "samples.csv", "closest.png"


@dataclass(frozen=True)
class Audit:
    """What images are compared with, and what counts as a copy."""

    training: Sequence[Record]
    known: Described
    encode: Encode
    thresholds: Thresholds
    size: int  # pixels along a side

    def nearest(self, images: Iterable[Tensor]) -> Nearest:
        """Compare batches of images with all training images."""
        return nearest_of_stream(images, self.known, self.encode)


def run_memorisation(options: argparse.Namespace) -> int:
    """Compare the samples with the training images, print the figures, write the files."""
    check_extra("eval", "scipy")
    check_finite({"false_alarms": options.false_alarms})
    if not 0 < options.false_alarms < 1:
        raise ValueError(f"--false-alarms {options.false_alarms}: use a share above 0 and below 1, such as 0.03.")
    if options.planted < 1:
        raise ValueError(f"--planted {options.planted}: an audit must be measured. Use 1 or more.")
    check_out(options.out, (REPORT, TABLE, PICTURE), options.overwrite)
    training, held_out = lineage_split(options.weights, options.data)
    samples = read_set(options.generated)
    model = load_model(options.weights, device=options.device)
    size = options.size or model.config.image_size
    check_sets([*training, *held_out], samples, size, option="--data", seek_copies=True)
    check_size(model.config, size)
    check_enough_images(training, held_out, options.false_alarms)

    audit = calibrated(training, model, size, options.false_alarms)
    thresholds = audit.thresholds
    unknown = audit.nearest(shown(held_out, size, "held-out images"))
    found = audit.nearest(shown(samples, size, "samples"))
    any_flag = [thresholds.flags(one).any(dim=0).tolist() for one in (found, unknown)]
    report = {
        "samples": len(samples),
        "flagged": shares(thresholds.flags(found)),
        "flagged_beyond_false_alarms": difference_of_shares(*any_flag),
        "training_images_copied": count_copied(training, found, thresholds),
        "calibration": calibration_fields(thresholds),
        "held_out": held_out_fields(training, held_out, unknown, thresholds)
        | {"false_alarms_changed": changed_held_out(audit, model, held_out)},
        "planted_copies_found": find_planted(audit, options.planted, options.seed),
        "training_images": len(training),
        "compared": compared_fields(options.weights, model, training, size),
    }
    if options.out is not None:
        write_files(options.out, audit, samples, found)
    return keep(report, options.out, REPORT)


def calibrated(training: Sequence[Record], model: LatentDiffusion, size: int, false_alarms: float) -> Audit:
    """Describe the training images by the model's autoencoder, and take the thresholds from them."""
    encode, groups = latent_features(model), [record.group for record in training]
    known = describe(shown(training, size, "training images"), encode)
    thresholds = calibrate(shown(training, size, "calibration"), known, encode, groups, false_alarms)
    return Audit(training, known, encode, thresholds, size)


def shown(records: Sequence[Record], size: int, name: str) -> Iterator[Tensor]:
    """Stream images with a bar."""
    with tqdm(total=len(records), unit="image", desc=name, delay=0.5) as bar:
        for x in stream(records, size, BATCH):
            yield x
            bar.update(len(x))


def changed_held_out(audit: Audit, model: LatentDiffusion, held_out: Sequence[Record]) -> dict[str, Any]:
    """Count the false alarms among held-out images that are as smooth as samples: less tells soft images apart."""
    figures = {}
    for name, change in (("reconstructed", partial(reconstruct_grey, model)), ("blurred", blur)):
        changed = map(change, shown(held_out, audit.size, f"held-out images, {name}"))
        figures[name] = shares(audit.thresholds.flags(audit.nearest(changed)))
    return figures


def find_planted(audit: Audit, planted: int, seed: int) -> dict[str, Any]:
    """Plant copies of each kind and count those that a score flags and gives to the family of their original.

    The kinds of OUTSIDE are changes that no score searches for: what the audit misses of them is a limit of it.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(audit.training), generator=generator)[:planted].tolist()
    originals = [audit.training[i] for i in chosen]
    family = torch.from_numpy(np.unique([record.group for record in audit.training], return_inverse=True)[1])
    figures = {}
    for kind in (*KINDS, *OUTSIDE):
        images = shown(originals, audit.size, f"planted: {kind}")
        copies = (torch.stack([plant(image, kind, generator) for image in x]) for x in images)
        found = audit.nearest(copies)
        figures[kind] = shares(audit.thresholds.flags(found) & (family[found.image] == family[chosen]))
    return figures


def compared_fields(weights: Path, model: LatentDiffusion, training: Sequence[Record], size: int) -> dict[str, Any]:
    """What the thresholds hold for: sample.py refuses others."""
    return {
        "size": size,
        "search": SEARCH,
        "weights_sha256": sha256_file(weights),
        "features": "mean latents of the encoder of the weights",
        "encoder_sha256": weights_hash(model, weights, ENCODER),
        "training_sha256": data_hash(training),
    }


def write_files(out: Path, audit: Audit, samples: Sequence[Record], found: Nearest) -> None:
    """Write the table and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    ratios = [SCORES[k] for k in RATIOS]
    columns = [*(f"nearest_by_{name}" for name in SCORES), *(f"{name}_distance" for name in ratios)]
    table.writerow(["file", *columns, *(f"{name}_ratio" for name in ratios), "detail_correlation", "flagged_by"])
    numbers = torch.cat([found.distances[RATIOS], found.scores[RATIOS], 1 - found.scores[[SCORES.index("detail")]]])
    rows = zip(samples, found.image.T.tolist(), numbers.T.tolist(), audit.thresholds.flags(found).T, strict=True)
    for record, near, values, flags in rows:
        names = [audit.training[i].image.name for i in near]
        flagged_by = " ".join(SCORES[k] for k in flags.nonzero()[:, 0].tolist())
        table.writerow([record.image.name, *names, *(f"{value:.4f}" for value in values), flagged_by])
    write_text(out / TABLE, text.getvalue())
    save_png(draw_pairs(closest(audit, samples, found), audit.size), out / PICTURE, {"note": NOTE})


def closest(audit: Audit, samples: Sequence[Record], found: Nearest) -> Iterator[Pair]:
    """The samples nearest to the training images, by the score that is smallest beside its threshold."""
    smallest = audit.thresholds.suspicion(found).min(dim=0)
    for i in smallest.values.argsort(stable=True)[:CLOSEST].tolist():
        k = int(smallest.indices[i])
        other = audit.training[int(found.image[k, i])]
        value, threshold = float(found.scores[k, i]), float(audit.thresholds.values[k])
        yield Pair(samples[i].image, other.image, SCORES[k], value, threshold)
