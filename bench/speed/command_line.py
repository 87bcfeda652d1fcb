"""The command line of the benchmark, and the sizes that it stands for."""

import argparse
from pathlib import Path
from typing import Any

from ldm_us.config import PRESETS
from ldm_us.runtime.command_line import short_usage
from ldm_us.runtime.help_page import describe

ROOT = Path(__file__).parents[2]
GROUPS = ("networks", "samples", "training", "epoch", "start", "conversion")
DTYPES = ("float32", "bfloat16", "float16")
QUICK: dict[str, Any] = {
    "size": 256,
    "batches": (1, 2),
    "training_batches": (1,),
    "rounds": 3,
    "steps": (4,),
    "sample_rounds": 1,
    "turns": 1,
    "turn_rounds": 1,
    "images": 4,
}


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed")
    about = (
        "Measure ours and diffusers on the same random weights, in alternation, and print a table in Markdown. Each "
    )
    about += "group writes a file of JSON into --out and is not measured again, so that the same command goes on where "
    about += "it was stopped. Weights are written there once: 11 GB at SD 1.5's size. Seeds are fixed."
    describe(parser, about, "--quick", "--only networks samples --device cuda --dtype bfloat16 --compile")
    add = parser.add_argument
    add("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=f"of {', '.join(GROUPS)} (all)")
    add("--quick", action="store_true", help="256x256 pixels, few repeats: ten minutes on two cores")
    add(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of the weights; in training autocast (float32)"
    )
    add("--compile", action="store_true", help="compile the denoisers of both sides")
    add("--preset", choices=tuple(PRESETS), default="sd15", help="size of the networks (%(default)s)")
    add("--size", type=int, metavar="PIXELS", help="side of the images (512, quick 256)")
    add("--unet-batch", type=int, nargs="+", metavar="N", help="batches of the UNet (1 2 8, quick 1 2)")
    add("--training-batch", type=int, nargs="+", metavar="N", help="batches of its training (1 4, quick 1)")
    add("--epoch-batch", type=int, default=1, metavar="N", help="batch of the epoch (%(default)s)")
    add("--images", type=int, metavar="N", help="images of the epoch (32, quick 4)")
    add("--sample-steps", type=int, nargs="+", metavar="S", help="of whole samples (20 50, quick 4)")
    add("--rounds", type=int, metavar="N", help="timed calls of a network (5, quick 3)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor seconds, on a busy machine (wall)")
    add("--threads", type=int, metavar="N", help="of the CPU (all cores)")
    add("--device", default="cpu", help="of both sides: cpu, cuda, cuda:1 (%(default)s)")
    add("--out", type=Path, default=ROOT / "runs" / "bench", metavar="DIR", help="for results, weights (runs/bench)")
    add("--overwrite", action="store_true", help="measure again and replace what --out holds")
    add("--table", action="store_true", help="measure nothing: print the table of what --out holds")
    return short_usage(parser)
