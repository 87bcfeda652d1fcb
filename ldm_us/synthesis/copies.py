"""Samples that look like training images are drawn again with another seed: sample.py --drop-memorised.

What a copy is says ldm_us/evaluation/memorisation/dropping.py. Each sample is compared by itself and its next seed
follows from its own: neither depends on other samples, batches or processes, or on where a killed call stopped. The
picture keeps its place and name. Its field `seed` is the one that made it, and `dropped_seeds` are those before.
"""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ldm_us.files.atomic import sha256_file
from ldm_us.synthesis.drawing import Wanted
from ldm_us.synthesis.edits import Drawn
from ldm_us.synthesis.fields import Fields

ATTEMPTS = 20  # seeds that are tried for one sample before the model counts as memorised

IsCopy = Callable[[Tensor], bool]  # of one image (3, H, W) in [0, 1]


def add_copies_options(parser: argparse.ArgumentParser) -> None:
    """Describe what drops copies."""
    add = parser.add_argument_group("copies of training images").add_argument
    add("--drop-memorised", type=Path, metavar="REPORT", help="draw again what memorisation.json calls a copy")
    add("--data", type=Path, nargs="+", metavar="DIR", help="--drop-memorised: the training data")


def check_copies_options(options: argparse.Namespace) -> None:
    """Raise ValueError where --drop-memorised and --data do not stand together, or stand beside --init."""
    if (options.drop_memorised is None) != (options.data is None):
        raise ValueError("--drop-memorised and --data belong together: give both, or none.")
    if options.drop_memorised is not None and options.init is not None:
        raise ValueError("--drop-memorised: an edit is meant to look like its original. Leave it away when editing.")


def copies_fields(options: argparse.Namespace) -> Fields:
    """The field that names the report; none without one."""
    return {} if options.drop_memorised is None else {"drop_memorised_sha256": sha256_file(options.drop_memorised)}


def without_copies(
    draw: Callable[..., list[Drawn]], is_copy: IsCopy | None, wanted: list[Wanted], on_step: Callable[..., object]
) -> tuple[list[Drawn], list[list[int]]]:
    """Draw samples, those that are copies again; -> the samples and the seeds tried for each, the last one kept.

    Raise ValueError where ATTEMPTS seeds in a row give copies.
    """
    drawn = draw(wanted=wanted, on_step=on_step)
    tried = [[one.seed] for one in wanted]
    for i, one in enumerate(wanted if is_copy is not None else ()):
        assert is_copy is not None
        while is_copy(drawn[i].x):
            if len(tried[i]) == ATTEMPTS:
                raise ValueError(
                    f"--drop-memorised: {ATTEMPTS} seeds in a row for {one.prompt!r} (from seed {one.seed}) look like "
                    "training images. The model has memorised them: use one trained for fewer steps or on more data."
                )
            tried[i].append(next_seed(one.seed, len(tried[i])))
            drawn[i] = draw(wanted=[one._replace(seed=tried[i][-1])], on_step=None)[0]
    return drawn, tried


def next_seed(seed: int, attempt: int) -> int:
    """The seed of a further attempt, 0..2^62: it follows from the sample's own seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{attempt}".encode()).digest()[:8], "big") >> 2
