"""What a training step of each method holds in memory, estimated without a GPU and without weights.

    python bench/memory.py --batch 4 --precision bf16

The estimate is what train.py prints and decides by (ldm_us/training/memory/peak.py).
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.config import PRECISIONS, PRESETS
from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/memory.py")
    about = "What a training step of each method holds in memory, as train.py estimates it: with and without "
    about += "checkpointing, and the smallest common card that has room. Prints a table; nothing is kept."
    describe(parser, about, "--batch 4 --precision bf16")
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="sd15", help="sizes of the networks (%(default)s)")
    add("--batch", type=int, default=4, metavar="N", help="images at a time (%(default)s)")
    add("--precision", choices=PRECISIONS, default="bf16", help="of the training (%(default)s)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from ldm_us.runtime.checks import check_words
from ldm_us.runtime.entry import run_command
from ldm_us.training.command_line import parse_options
from ldm_us.training.memory.fitting import GIB, fits
from ldm_us.training.memory.peak import peak_bytes

METHODS = (
    "unet",
    "unet --ema 0",
    "unet --optimizer adafactor",
    "unet --lora 8",
    "controlnet",
    "controlnet --unlock-decoder",
    "controlnet --lora 8",
)
CARDS = {8: 7.6, 12: 11.6, 16: 15.6, 24: 23.6, 40: 39.4, 80: 79.1}  # GB by name, and the GiB that CUDA shows


def main(argv: list[str] | None = None) -> int:
    """Print a table in Markdown."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    print("| options of `train.py` | GiB | with `--gradient-checkpointing` | cards, GB |\n|---|---|---|---|")
    for method in METHODS:
        peaks = [peak(options, [*method.split(), *more]) for more in ([], ["--gradient-checkpointing"])]
        cards = [next((name for name, gib in CARDS.items() if fits(each, int(gib * GIB))), "more") for each in peaks]
        print(f"| `{method}` | {peaks[0] / GIB:.1f} | {peaks[1] / GIB:.1f} | {cards[0]}, {cards[1]} |", flush=True)
    return 0


def peak(options: argparse.Namespace, words: list[str]) -> int:
    """The estimate for a command line of train.py."""
    about = (
        f"--data D --weights F --out R --steps 1 --device cpu --batch {options.batch} --precision {options.precision}"
    )
    return peak_bytes(PRESETS[options.preset], parse_options([*words, *about.split()]))


if __name__ == "__main__":
    sys.exit(run_command(main))
