"""The command mask-fidelity: do the samples of a folder obey the masks that lie beside them?"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import Record, of_structure
from ldm_us.evaluation.judge.file import Training, check_judged, load_judge, structure_of
from ldm_us.evaluation.judge.network import judge
from ldm_us.evaluation.masks.fidelity import JUDGE, RULE, dark_lesions, load_batch, other_of_its_class
from ldm_us.evaluation.masks.figures import mask_figures, share_figure
from ldm_us.evaluation.masks.folder import (
    Pairs,
    check_same_classes,
    find_in_batches,
    grouped_by_mask,
    measure_lesions,
    side_of,
    with_and_without_lesion,
)
from ldm_us.evaluation.masks.picture import check_picture_path, chosen, save_mask_picture, shown
from ldm_us.evaluation.results import check_out, keep
from ldm_us.evaluation.sets.evaluated_images import check_unseen_by_judge, not_seen_by_judge
from ldm_us.evaluation.sets.image_sets import check_sets, read_set

RESULT = "mask-fidelity.json"


def run_mask_fidelity(options: argparse.Namespace) -> int:
    """Print samples against their masks, against others' masks, and real images against theirs."""
    check_picture_path(options.save_grid, options.overwrite)
    check_out(options.out, [RESULT], options.overwrite)
    network, training = (None, None) if options.judge is None else load_judge(options.judge, options.device)
    structure = structure_of(options.structure, options.judge, training)
    samples, real, mask_of, size = read_pairs(options.generated, options.real, options.judge, training, structure)
    if network is not None:
        check_judged(network, [record.label for pairs in samples for record in pairs], "--generated")

    def find(images: Tensor) -> Tensor:
        return dark_lesions(images) if network is None else judge(network, images).masks

    images = sum(map(len, samples))
    with tqdm(total=images + sum(map(len, real)), unit="image", desc="finding lesions", delay=0.1) as bar:

        def found_in(records: Sequence[Record]) -> Iterator[tuple[Tensor, Tensor]]:
            return find_in_batches(records, size, find, options.batch, bar.update)

        true, shuffled = measure_lesions(samples.lesions, mask_of, found_in(samples.lesions), size)
        ceiling, _ = measure_lesions(real.lesions, real.lesions, found_in(real.lesions), size)
        nothing = [[not one.any() for found, _ in found_in(pairs.empty) for one in found] for pairs in (samples, real)]
    printed: dict[str, Any] = {
        "samples": images,
        "size": size,
        "found_by": RULE if network is None else JUDGE,
        **mask_figures({"true": true, "shuffled": shuffled, "real": ceiling}, size**2),
    }
    if samples.empty:
        printed["nothing_found_where_nothing_was_asked"] = {
            name: share_figure(np.array(hits), [record.group for record in pairs.empty])
            for name, hits, pairs in zip(("true", "real"), nothing, (samples, real), strict=True)
        }
    if training is not None:
        printed["judge_on_held_out_images"] = training.figures
    if options.save_grid is not None:
        rows = []
        for column, pairs in ((true, samples), (ceiling, real)):
            index = chosen(column)
            rows.append(shown(column, index, *load_batch([pairs.lesions[i] for i in index], size), find))
        save_mask_picture(rows[0], rows[1], options.save_grid, printed["found_by"])
    return keep(printed, options.out, RESULT)


def read_pairs(
    generated_folders: Sequence[Path],
    real_folders: Sequence[Path],
    judge_file: Path | None,
    training: Training | None,
    structure: str | None = None,
) -> tuple[Pairs, Pairs, list[Record], int]:
    """Samples, real images, for each sample with a lesion the one whose mask is its floor, and their side in pixels.

    Raise ValueError, before anything is measured, for what cannot be compared.
    """
    generated = of_structure(read_set(generated_folders), structure)
    every_real = of_structure(read_datasets(real_folders), structure)
    size = check_sets(every_real, generated, side_of(generated))
    samples = with_and_without_lesion(generated, size, "--generated")
    if not samples.lesions:
        raise ValueError(f"--generated: none of the {len(generated)} images was asked for a lesion. Give lesions.")
    samples = samples._replace(lesions=grouped_by_mask(samples.lesions, size))
    others = other_of_its_class([r.label for r in samples.lesions], [r.group for r in samples.lesions])
    if judge_file is None or training is None:
        unseen = sorted(merge_families(every_real))
    else:
        check_unseen_by_judge(judge_file, training, generated)
        unseen = of_structure(not_seen_by_judge(judge_file, training, real_folders), structure)
    labels = {record.label for record in generated}
    real = with_and_without_lesion([record for record in unseen if record.label in labels], size, "--real")
    check_same_classes(samples.lesions, real.lesions)
    check_same_classes(samples.empty, real.empty)
    return samples, real, [samples.lesions[i] for i in others], size
