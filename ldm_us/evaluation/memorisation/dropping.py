"""Samples that look like training images are drawn again with another seed: sample.py --drop-memorised.

The thresholds are those that `python -m ldm_us.evaluation memorisation` took from the same model and data. Each sample
is compared by itself and its next seed follows from its own: neither depends on other samples, batches or processes,
or on where a killed call stopped. The picture keeps its place and name. Its field `seed` is the one that made it, and
`dropped_seeds` are those before.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, computing
from ldm_us.evaluation.memorisation.nearest_training import SEARCH, Described, describe, nearest
from ldm_us.evaluation.memorisation.thresholds import Thresholds, latent_features, read_thresholds
from ldm_us.evaluation.sets.evaluated_images import lineage_split
from ldm_us.evaluation.sets.image_sets import stream
from ldm_us.synthesis.drawing import Drawn, Wanted, draw_samples
from ldm_us.synthesis.recipe import Recipe
from ldm_us.training.cache import ENCODER, weights_hash
from ldm_us.training.dataset import data_hash

ATTEMPTS = 20  # seeds that are tried for one sample before the model counts as memorised


@dataclass(frozen=True)
class TrainingImages:
    """The images that a model was trained on, described for comparison, and when a sample counts as a copy of one."""

    model: LatentDiffusion
    threads: Sampling
    known: Described
    thresholds: Thresholds

    def hold(self, x: Tensor) -> bool:
        """Whether one of them is what a sample (3, H, W) in [0, 1] shows."""
        seen = (x.mean(dim=0, keepdim=True)[None].clamp(0, 1) * 255).round() / 255  # as the file will be read
        with computing(self.model, self.threads):
            return bool(self.thresholds.flags(nearest(seen, self.known, latent_features(self.model))).any())


def load_training_images(
    report: Path, model: LatentDiffusion, weights: Path, folders: Sequence[Path], sampling: Sampling
) -> TrainingImages:
    """What the samples of a resolved Sampling may be copies of, and the thresholds of a report of memorisation.

    `weights` is the file of the model, `folders` its training data. Raise ValueError for a report of another encoder,
    size, search or training data.
    """
    thresholds, compared = read_thresholds(report)
    training, _ = lineage_split(weights, folders)
    assert isinstance(sampling.size, int)  # the thresholds are for squares
    given = {
        "size": sampling.size,
        "search": SEARCH,
        "encoder_sha256": weights_hash(model, weights, ENCODER),
        "training_sha256": data_hash(training),
    }
    differing = [name for name, value in given.items() if compared.get(name) != value]
    if differing:
        raise ValueError(
            f"--drop-memorised {report}: made with another {' and '.join(differing)}. Run "
            "`python -m ldm_us.evaluation memorisation` with these --weights, --data and size."
        )
    threads = Sampling(threads=sampling.threads)
    with computing(model, threads):
        known = describe(stream(training, sampling.size), latent_features(model))
    return TrainingImages(model, threads, known, thresholds)


def drop_copies(
    drawn: Sequence[Drawn],
    wanted: Sequence[Wanted],
    training: TrainingImages | None,
    model: LatentDiffusion,
    recipe: Recipe,
    added: Sequence[ControlTerm] = (),
    strips: Sequence[str] = (),
) -> tuple[list[Drawn], list[list[int]]]:
    """Draw those samples again that are copies; -> the samples, and the seeds tried for each, the last one kept.

    Raise ValueError where ATTEMPTS seeds in a row give copies. Without `training` nothing is dropped.
    """
    kept, tried = list(drawn), [[one.seed] for one in wanted]
    for i, one in enumerate(wanted):
        while training is not None and training.hold(kept[i].x):
            if len(tried[i]) == ATTEMPTS:
                raise ValueError(
                    f"--drop-memorised: {ATTEMPTS} seeds in a row for {one.prompt!r} (from seed {one.seed}) look like "
                    "training images. The model has memorised them: use one trained for fewer steps or on more data."
                )
            tried[i].append(next_seed(one.seed, len(tried[i])))
            (kept[i],) = draw_samples(model, [one._replace(seed=tried[i][-1])], recipe, added, strips)
    return kept, tried


def next_seed(seed: int, attempt: int) -> int:
    """The seed of a further attempt, 0..2^62: it follows from the sample's own seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{attempt}".encode()).digest()[:8], "big") >> 2
