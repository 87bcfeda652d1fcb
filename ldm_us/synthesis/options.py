"""The command line of sample.py: what can be asked for, and what makes no sense."""

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path

from ldm_us.checkpoint import BUNDLED
from ldm_us.checks import check_device, check_finite_options, check_seed
from ldm_us.edit_options import add_edit_options
from ldm_us.sampling import SAMPLERS
from ldm_us.synthesis.copies import add_copies_options
from ldm_us.synthesis.plan import LAYOUTS
from ldm_us.synthesis.weights import parse_lora
from ldm_us.torchrun import process_count


def build_parser() -> argparse.ArgumentParser:
    """Describe sample.py's command line."""
    parser = argparse.ArgumentParser(prog="sample.py", description="Sample images. Synthetic: not for diagnosis.")
    add_what(parser.add_argument_group("what").add_argument)
    add_how(parser.add_argument_group("how").add_argument)
    add_edit_options(parser)
    add_copies_options(parser)
    add = parser.add_argument_group("where to").add_argument
    add("--out", type=Path, metavar="DIR", help="folder for the images (samples, or the first free of samples-2, ...)")
    add("--layout", choices=LAYOUTS, default="flat", help="busi: class folders with images and masks (%(default)s)")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    add("--watermark", action="store_true", help="an invisible mark that says synthetic (extra: watermark)")
    add("--info", action="store_true", help="say what --weights holds and where it came from, and stop")
    add("--verify", type=Path, metavar="IMAGE", help="draw a sample again, compare every pixel, and stop")
    return parser


def add_what(add: Callable[..., object]) -> None:
    """Classes, prompts, masks and how many of each."""
    add("--class", dest="labels", action="append", default=[], metavar="NAME", help="normal, benign, malignant (all)")
    add("--prompt", metavar="TEXT", help="any other text instead of a class")
    add("--negative-prompt", default="", metavar="TEXT", help="what to steer away from (nothing)")
    add("--mask", type=Path, metavar="PATH", help="a mask, white on black, or a folder: needs a ControlNet")
    add("--n", type=int, metavar="N", help="samples per class, prompt or mask; with --balance of all (4)")
    add("--balance", type=float, nargs=3, metavar=("B", "M", "N"), help="shares, or counts, of benign malignant normal")
    add("--seed", type=int, default=0, metavar="N", help="of the first sample; the next ones follow (%(default)s)")


def add_how(add: Callable[..., object]) -> None:
    """Weights, sampler and machine."""
    add("--weights", type=Path, default=BUNDLED, metavar="FILE", help="a model.safetensors (the bundled us128)")
    add("--controlnet", type=Path, metavar="FILE", help="take the ControlNet of this model file instead")
    add(
        "--lora",
        type=parse_lora,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[:X]",
        help="merged with weight X",
    )
    add("--steps", type=int, default=50, metavar="S", help="model calls per image, 1..1000 (%(default)s)")
    add("--sampler", choices=SAMPLERS, default="ddim", help="(%(default)s)")
    add("--eta", type=float, default=0.0, metavar="X", help="noise of ddim: 0 none, 1 as much as ddpm (%(default)s)")
    add("--guidance", type=float, metavar="S", help="weight of the text, 1: none (sd15 7.5; us128 3, with a mask 1)")
    add("--control-scale", type=float, metavar="X", help="weight of the mask (1 for sd15, 2 for us128)")
    add("--size", type=int, metavar="PIXELS", help="side of the images (what the model was made for)")
    add("--batch", type=int, default=4, metavar="N", help="images at a time; changes no bit (%(default)s)")
    add("--fast", action="store_true", help="a whole batch in one network call: its size then changes the last bits")
    add("--threads", type=int, default=1, metavar="N", help="of the CPU; part of what fixes the bits (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, for GPUs and CPUs with AMX")


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is loaded or written."""
    for name in ("n", "batch", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: use 1 or more.")
    check_device(options.device)
    check_seed(options.seed)
    given = [name for name in ("guidance", "control_scale") if getattr(options, name) is not None]
    check_finite_options(options, ("eta", *given))
    if not 0 <= options.eta <= 1:
        raise ValueError(f"--eta {options.eta}: use 0 (no noise) to 1 (as much as ddpm).")
    for lora in options.lora:
        if not abs(lora.scale) < float("inf"):
            raise ValueError(f"--lora {lora.path}:{lora.scale}: use a finite scale.")
    if options.out is None and process_count() > 1:
        raise ValueError("several processes need one folder: give --out.")


def first_free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist."""
    candidates = (out if i == 1 else out.with_name(f"{out.name}-{i}") for i in count(1))
    return next(path for path in candidates if not path.exists())
