"""How many steps a sample needs: DDIM and DPM-Solver++ on the bundled model, measured by the bundled judge.

    python bench/samplers.py --data runs/bundled/unseen

A row is a sampler and its steps: classes named as asked, Dice with masks that the model has not seen, and how far the
latents end from those of 1,000 DDIM steps from the same noise, as a share of their size. Prints a table in Markdown.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_us.config import BUNDLED
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.data.records import CLASSES, class_prompt
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, computing, conditions_of, denoise, draw_start
from ldm_us.evaluation.judge.file import load_judge
from ldm_us.evaluation.judge.network import judge
from ldm_us.evaluation.masks.fidelity import mask_fidelity
from ldm_us.evaluation.measuring.command import with_lesions
from ldm_us.evaluation.samples import draw_samples
from ldm_us.files.checkpoint import load_model

ROWS = (("ddim", 50), ("ddim", 20), ("dpm", 10), ("dpm", 15), ("dpm", 20), ("dpm", 25), ("dpm", 50))
MANY = Sampling("ddim", steps=1000)
LATENTS = 6  # samples whose latents are compared, two a class
BATCH = 8


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="images that the model has not seen")
    parser.add_argument("--n", type=int, default=20, metavar="N", help="samples a class (%(default)s)")
    parser.add_argument("--masks", type=int, default=32, metavar="N", help="masks (%(default)s)")
    options = parser.parse_args()
    model, (network, _) = load_model(BUNDLED), load_judge(BUNDLED.with_name("judge.safetensors"))
    records = with_lesions(read_dataset(options.data), options.masks, model.config.image_size)
    asked = [label for label in CLASSES for _ in range(options.n)]
    prompts = [class_prompt(label) for label in CLASSES] * (LATENTS // len(CLASSES))
    far = latents(model, prompts, MANY)
    print("| sampler | steps | classes named as asked | Dice | distance to 1,000 steps | s a sample |")
    print("|---|---|---|---|---|---|")
    for sampler, steps in ROWS:
        sampling = Sampling(sampler, steps, threads=None, exact=False)
        started = time.process_time()
        samples = draw_samples(model, [class_prompt(label) for label in asked], sampling, batch=BATCH)
        seconds = (time.process_time() - started) / len(asked)
        named = judge(network, samples).labels
        right = sum(a == b for a, b in zip(asked, named, strict=True)) / len(asked)
        fidelity = mask_fidelity(model, records, sampling, lambda x: judge(network, x).masks, batch=BATCH)
        distance = (latents(model, prompts, sampling) - far).norm() / far.norm()
        print(f"| {sampler} | {steps} | {right:.0%} | {float(fidelity.true.dice.mean()):.3f} ", end="")
        print(f"| {float(distance):.3f} | {seconds:.2f} |", flush=True)


@torch.no_grad()
def latents(model: LatentDiffusion, prompts: Sequence[str], sampling: Sampling) -> Tensor:
    """z_0 (b, c, h, w) of prompts, with the seeds 0, 1, ... ."""
    sampling, generators = sampling.resolved(model.config, masked=False), generators_of(range(len(prompts)))
    with computing(model, sampling) as computed:
        conditions = conditions_of(computed, prompts, sampling)
        z_T = draw_start(computed, sampling, generators, prompts)
        *_, last = denoise(computed, z_T, conditions, generators, sampling)
    return last.z


if __name__ == "__main__":
    main()
