"""The command mask-fidelity: do the samples of a folder obey the masks that lie beside them?"""

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.records import Record
from ldm_us.evaluation.judge.file import Training, load_judge
from ldm_us.evaluation.judge.network import judge
from ldm_us.evaluation.masks.errors import MaskErrors
from ldm_us.evaluation.masks.fidelity import JUDGE, RULE, dark_lesions, other_of_its_class
from ldm_us.evaluation.masks.figures import Column, mask_figures, share_figure
from ldm_us.evaluation.masks.folder import (
    Pairs,
    check_same_classes,
    found_nothing,
    grouped_by_mask,
    load_batch,
    measure_lesions,
    side_of,
    with_and_without_lesion,
)
from ldm_us.evaluation.masks.picture import check_picture_path, chosen, save_mask_picture, shown
from ldm_us.evaluation.sets.evaluated_images import check_unseen_by_judge, not_seen_by_judge
from ldm_us.evaluation.sets.image_sets import check_sets, read_set
from ldm_us.training.dataset import read_data


@dataclass(frozen=True)
class Sets:
    """What is compared."""

    samples: Pairs
    real: Pairs
    others: list[int]  # for each sample with a lesion the one whose mask it gets as its floor
    size: int  # pixels along a side

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(part) for one in (self.samples, self.real) for part in (one.lesions, one.empty))


def add_mask_fidelity_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe mask-fidelity."""
    command = commands.add_parser("mask-fidelity", help="the same of samples in folders, with their masks beside them")
    command.set_defaults(run=run_mask_fidelity, device="cpu")
    add = command.add_argument
    add("--generated", type=Path, nargs="+", required=True, metavar="DIR", help="of sample.py --mask --layout busi")
    add("--real", type=Path, nargs="+", required=True, metavar="DIR", help="datasets; only what the judge has not seen")
    add("--judge", type=Path, metavar="FILE", help="what finds lesions (a rule)")
    add("--batch", type=int, default=32, metavar="N", help="images at a time (%(default)s)")
    add("--save-grid", type=Path, metavar="PNG", help="picture of the worst, median and best, asked and found")


def run_mask_fidelity(options: argparse.Namespace) -> int:
    """Print samples against their masks, against others' masks, and real images against theirs."""
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: use 1 or more.")
    check_picture_path(options.save_grid)
    network, training = (None, None) if options.judge is None else load_judge(options.judge)
    sets = read_sets(options, training)
    samples, real, size = sets.samples, sets.real, sets.size

    def find(images: Tensor) -> Tensor:
        return dark_lesions(images) if network is None else judge(network, images).masks

    with tqdm(total=sets.images, unit="image", desc="finding lesions", delay=0.1) as bar:
        measure = partial(measure_lesions, size=size, find=find, batch=options.batch, on_image=bar.update)
        true, shuffled = measure(samples.lesions, sets.others)
        ceiling, _ = measure(real.lesions, range(len(real.lesions)))
        nothing = [found_nothing(s.empty, size, find, options.batch, bar.update) for s in (samples, real)]
    columns = {
        "true": column_of(true, samples.lesions),
        "shuffled": column_of(shuffled, samples.lesions),
        "real": column_of(ceiling, real.lesions),
    }
    printed: dict[str, Any] = {
        "samples": len(samples.lesions) + len(samples.empty),
        "size": size,
        "found_by": RULE if network is None else JUDGE,
        **mask_figures(columns, size**2),
    }
    if samples.empty:
        printed["nothing_found_where_nothing_was_asked"] = {
            name: share_figure(np.array(hits), [record.group for record in one.empty])
            for name, hits, one in zip(("true", "real"), nothing, (samples, real), strict=True)
        }
    if training is not None:
        printed["judge_on_held_out_images"] = training.figures
    if options.save_grid is not None:
        rows = []
        for column, one in ((columns["true"], samples), (columns["real"], real)):
            index = chosen(column)
            rows.append(shown(column, index, *load_batch([one.lesions[i] for i in index], size), find))
        save_mask_picture(rows[0], rows[1], options.save_grid, printed["found_by"])
    print(json.dumps(printed, indent=2))
    return 0


def read_sets(options: argparse.Namespace, training: Training | None) -> Sets:
    """Read and check both sets. Raise ValueError, before anything is measured, for what cannot be compared."""
    generated = read_set(options.generated)
    size = check_sets(read_data(options.real), generated, side_of(generated))
    samples = with_and_without_lesion(generated, size, "--generated")
    if not samples.lesions:
        raise ValueError(f"--generated: none of the {len(generated)} images was asked for a lesion. Give lesions.")
    samples = replace(samples, lesions=grouped_by_mask(samples.lesions, size))
    others = other_of_its_class([r.label for r in samples.lesions], [r.group for r in samples.lesions])
    if training is None:
        real = sorted(merge_families(read_data(options.real)))
    else:
        check_unseen_by_judge(options.judge, training, generated)
        real = not_seen_by_judge(options.judge, training, options.real)
    labels = {record.label for record in generated}
    pairs = with_and_without_lesion([record for record in real if record.label in labels], size, "--real")
    check_same_classes(samples.lesions, pairs.lesions)
    check_same_classes(samples.empty, pairs.empty)
    return Sets(samples, pairs, others, size)


def column_of(errors: MaskErrors, records: list[Record]) -> Column:
    """The errors of records, with their classes and groups."""
    return Column(errors, [record.label for record in records], [record.group for record in records])
