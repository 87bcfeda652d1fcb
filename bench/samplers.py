"""How many steps a sample needs: DDIM and DPM-Solver++ on the bundled model, measured by the bundled judge.

    python bench/samplers.py --data runs/bundled/unseen

A row is a sampler, its steps, and the noise levels that are guided: how often a guided sample calls the UNet, with and
without the prompt counted as two; classes named as asked, Dice with masks that the model has not seen, the AUC of a
small network that tells samples from images (two-sample test), and how far the latents end from those of 1,000 DDIM
steps from the same noise, as a share of their size. Prints a table in Markdown.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench is not installed

from ldm_us.data.organ import BREAST
from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/samplers.py")
    about = "How many steps a sample needs: DDIM and DPM-Solver++ on the bundled model, measured by the bundled judge. "
    about += "Prints a table in Markdown; nothing is written."
    describe(parser, about, "--data runs/bundled/unseen")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="images new to the model")
    parser.add_argument("--n", type=int, default=40, metavar="N", help="samples a class (%(default)s)")
    parser.add_argument("--masks", type=int, default=32, metavar="N", help="masks (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first sample (%(default)s)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

import numpy as np
import torch
from torch import Tensor

from ldm_us.config import BUNDLED
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import load_image
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, computing, conditions_of, denoise, draw_start
from ldm_us.evaluation.judge.file import load_judge
from ldm_us.evaluation.judge.network import judge
from ldm_us.evaluation.masks.fidelity import mask_fidelity
from ldm_us.evaluation.measuring.command import with_lesions
from ldm_us.evaluation.realism.two_sample import STEPS, Shown, two_sample_test
from ldm_us.evaluation.samples import draw_samples
from ldm_us.files.checkpoint import load_model
from ldm_us.runtime.checks import check_words
from ldm_us.runtime.entry import run_command

PLAIN = (("ddim", 50), ("ddim", 20), ("dpm", 10), ("dpm", 15), ("dpm", 20), ("dpm", 25), ("dpm", 50))
INTERVALS = ((0.28, 2.9), (0.28, 5.42))  # arXiv 2404.07724: of EDM2 and of SD-XL
ROWS = (*(Sampling(*row) for row in PLAIN), *(Sampling("dpm", 20, guidance_interval=each) for each in INTERVALS))
MANY = Sampling("ddim", steps=1000)
LATENTS = 6  # samples whose latents are compared, two a class
BATCH = 8


def main(argv: list[str] | None = None) -> int:
    """Print the table, a row as soon as it is measured."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    model, (network, _) = load_model(BUNDLED), load_judge(BUNDLED.with_name("judge.safetensors"))
    images = read_datasets(options.data)
    records = with_lesions(images, options.masks, model.config.image_size)
    asked = [label for label in BREAST.classes for _ in range(options.n)]
    real = [
        Shown(str(i), record.label, grey(load_image(record.image, model.config.image_size) / 2 + 0.5))
        for label in BREAST.classes
        for i, record in enumerate([one for one in images if one.label == label][: options.n])
    ]
    prompts = [BREAST.prompt(label) for label in BREAST.classes] * (LATENTS // len(BREAST.classes))
    far, _ = latents(model, prompts, MANY)
    print("| sampler | steps | guided at | calls | classes named as asked | Dice | two-sample AUC | ", end="")
    print("distance to 1,000 steps | s a sample |\n|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        sampling = replace(row, threads=None, exact=False)
        started = time.process_time()
        samples = draw_samples(model, [BREAST.prompt(label) for label in asked], sampling, options.seed, BATCH)
        seconds = (time.process_time() - started) / len(asked)
        named = judge(network, samples).labels
        right = sum(a == b for a, b in zip(asked, named, strict=True)) / len(asked)
        fidelity = mask_fidelity(model, records, sampling, lambda x: judge(network, x).masks, options.seed, BATCH)
        z_0, calls = latents(model, prompts, sampling)
        made = [Shown(str(i), label, grey(x)) for i, (label, x) in enumerate(zip(asked, samples, strict=True))]
        test = two_sample_test(real, made, STEPS, options.seed)
        guided = "all levels" if row.guidance_interval is None else "{} to {}".format(*row.guidance_interval)
        print(f"| {row.sampler} | {row.steps} | {guided} | {calls} | {right:.0%} ", end="")
        print(
            f"| {float(fidelity.true.dice.mean()):.3f} | {test['auc']:.2f} ({test['low']:.2f}-{test['high']:.2f}) ",
            end="",
        )
        print(f"| {float((z_0 - far).norm() / far.norm()):.3f} | {seconds:.2f} |", flush=True)
    return 0


def grey(x: Tensor) -> np.ndarray:
    """An image (c, H, W) in [0, 1] as a PNG holds it: (H, W), uint8."""
    return (x.mean(dim=0) * 255).round().to(torch.uint8).numpy()


@torch.no_grad()
def latents(model: LatentDiffusion, prompts: Sequence[str], sampling: Sampling) -> tuple[Tensor, int]:
    """z_0 (b, c, h, w) of prompts, with the seeds 0, 1, ..., and how often the UNet saw each of them."""
    seen: list[int] = []
    counting = model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    sampling, generators = sampling.resolved(model.config, masked=False), generators_of(range(len(prompts)))
    with computing(model, sampling) as computed:
        conditions = conditions_of(computed, prompts, sampling)
        z_T = draw_start(computed, sampling, generators, prompts)
        *_, last = denoise(computed, z_T, conditions, generators, sampling)
    counting.remove()
    return last.z, sum(seen) // len(prompts)


if __name__ == "__main__":
    sys.exit(run_command(main))
