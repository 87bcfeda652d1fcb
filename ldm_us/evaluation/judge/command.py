"""The command train-judge: train a judge on real images, measure it on held-out ones, write both to one file."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from ldm_us.data.records import of_structure
from ldm_us.evaluation.judge.file import Training, image_digests, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, check_judge_size
from ldm_us.evaluation.judge.training import measure_judge, train_judge
from ldm_us.runtime.checks import check_new_file
from ldm_us.training.dataset import data_hash, split_data


def run_train_judge(options: argparse.Namespace) -> int:
    """Train, print the figures on held-out images, write the file."""
    check_judge_size(JudgeConfig(size=options.size))
    if not 0 < options.held_out < 1:
        raise ValueError(f"--held-out {options.held_out}: a judge must be measured. Use more than 0 and less than 1.")
    check_new_file(options.out, options.overwrite)
    records, held_out = (of_structure(s, options.structure) for s in split_data(options.data, options.held_out))
    if not held_out:
        raise ValueError(f"--data: {len(records)} images are too few to hold one of a class out. Give more.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    digest, images = data_hash(records), image_digests(records)
    with tqdm(total=options.steps, unit="step", desc="judge", delay=0.1) as bar:  # no bar beside an error

        def show(_step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        network = train_judge(records, options.size, options.steps, options.batch, options.seed, show, options.device)
    training = Training(
        steps=options.steps,
        batch=options.batch,
        seed=options.seed,
        held_out=options.held_out,
        data=[Path(folder).name for folder in options.data],
        data_sha256=digest,
        images=images,
        figures=measure_judge(network, held_out),
        structure=options.structure,
    )
    save_judge(network.cpu(), options.out, training)
    print(json.dumps({"judge": str(options.out), "trained_on": len(records), "held_out": training.figures}, indent=2))
    return 0
