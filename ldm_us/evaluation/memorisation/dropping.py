"""What sample.py --drop-memorised asks of every sample: is it a copy of a training image?

The thresholds are those that `python -m ldm_us.evaluation memorisation` took from the same model and data. What is done
about a copy stands in ldm_us/synthesis/copies.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.memorisation.nearest_training import describe, nearest
from ldm_us.evaluation.memorisation.thresholds import latent_features, read_thresholds
from ldm_us.evaluation.sets.evaluated_images import lineage_split
from ldm_us.evaluation.sets.image_sets import stream
from ldm_us.synthesis.copies import IsCopy
from ldm_us.synthesis.drawing import Settings, cpu_threads
from ldm_us.training.cache import ENCODER, weights_hash
from ldm_us.training.dataset import data_hash


def load_is_copy(options: argparse.Namespace, model: LatentDiffusion, settings: Settings) -> IsCopy | None:
    """What tells copies, as the options of sample.py ask for it; None where they do not."""
    if options.drop_memorised is None:
        return None
    return teller_of_copies(
        options.drop_memorised, model, options.weights, options.data, settings.size, settings.threads
    )


def teller_of_copies(
    report: Path, model: LatentDiffusion, weights: Path, folders: Sequence[Path], size: int, threads: int
) -> IsCopy:
    """What tells whether a sample of `size` pixels is a copy of one of the images that the model was trained on.

    `weights` is the file of the model, `folders` its training data. Raise ValueError for a report of another encoder,
    size or training data.
    """
    thresholds, compared = read_thresholds(report)
    training, _ = lineage_split(weights, folders)
    given = {
        "size": size,
        "encoder_sha256": weights_hash(model, weights, ENCODER),
        "training_sha256": data_hash(training),
    }
    differing = [name for name, value in given.items() if compared.get(name) != value]
    if differing:
        raise ValueError(
            f"--drop-memorised {report}: made with another {' and '.join(differing)}. Run "
            "`python -m ldm_us.evaluation memorisation` with these --weights, --data and size."
        )
    encode = latent_features(model)
    with cpu_threads(threads):
        known = describe(stream(training, size), encode)

    def is_copy(x: Tensor) -> bool:
        seen = (x.mean(dim=0, keepdim=True)[None].clamp(0, 1) * 255).round() / 255  # as the file will be read
        with cpu_threads(threads):
            return thresholds.flags(nearest(seen, known, encode))["any"][0]

    return is_copy
