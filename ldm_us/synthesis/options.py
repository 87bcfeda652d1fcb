"""The command line of sample.py: what can be asked for, and what makes no sense."""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from ldm_us.data.records import CLASSES
from ldm_us.diffusion.sampling import SAMPLERS
from ldm_us.files.checkpoint import BUNDLED
from ldm_us.runtime.checks import check_device, check_finite_options, check_seed
from ldm_us.runtime.torchrun import process_count
from ldm_us.synthesis.copies import add_copies_options
from ldm_us.synthesis.drawing import Settings
from ldm_us.synthesis.edit_options import add_edit_options, draws_no_noise, edit_values, wants_edit
from ldm_us.synthesis.plan import LAYOUTS, Plan
from ldm_us.synthesis.weights import parse_lora


def build_parser() -> argparse.ArgumentParser:
    """Describe sample.py's command line."""
    parser = argparse.ArgumentParser(
        prog="sample.py",
        usage="sample.py [options]",
        description="Sample images. Synthetic: not for diagnosis.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=30),
    )
    add_what(parser.add_argument_group("what").add_argument)
    add_how(parser.add_argument_group("how").add_argument)
    add_edit_options(parser)
    add_copies_options(parser)
    add = parser.add_argument_group("where to").add_argument
    add("--out", type=Path, metavar="DIR", help="folder (samples, or else samples-2, ...)")
    add("--layout", choices=LAYOUTS, default="flat", help="busi: class folders with masks (%(default)s)")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    add("--watermark", action="store_true", help="invisible, says synthetic (extra: watermark)")
    add("--info", action="store_true", help="say what --weights holds and where it is from")
    add("--verify", type=Path, metavar="PATH", help="draw a sample, or a folder, again and compare")
    return parser


def add_what(add: Callable[..., object]) -> None:
    """Classes, prompts, masks and how many of each."""
    add("--class", dest="labels", action="append", default=[], metavar="NAME", help="normal, benign, malignant (all)")
    add("--prompt", metavar="TEXT", help="any other text instead of a class")
    add("--negative-prompt", default="", metavar="TEXT", help="what to steer away from (nothing)")
    add("--mask", type=Path, metavar="PATH", help="a mask, white on black, or a folder of masks")
    add("--n", type=int, metavar="N", help="samples of each; with --balance of all (4)")
    add("--balance", type=float, nargs=3, metavar=("B", "M", "N"), help="shares or counts: benign malignant normal")
    add("--seed", type=int, default=0, metavar="N", help="of the first sample; others follow (%(default)s)")


def add_how(add: Callable[..., object]) -> None:
    """Weights, sampler and machine."""
    add("--weights", type=Path, default=BUNDLED, metavar="FILE", help="a model.safetensors (the bundled us128)")
    add("--controlnet", type=Path, metavar="FILE", help="take the ControlNet of this model file")
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
    add("--eta", type=float, default=0.0, metavar="X", help="noise of ddim: 0 none, 1 as ddpm (%(default)s)")
    add("--guidance", type=float, metavar="S", help="of the text, 1 none (sd15 7.5; us128 3, mask 1)")
    add("--control-scale", type=float, metavar="X", help="weight of the mask (sd15 1, us128 2)")
    add("--size", type=int, metavar="PIXELS", help="side of the images (that of the model)")
    add("--batch", type=int, default=4, metavar="N", help="images at a time; changes no bit (%(default)s)")
    add("--fast", action="store_true", help="a batch in one call, which changes the last bits")
    add("--threads", type=int, default=1, metavar="N", help="of the CPU; they fix the bits too (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, for GPUs and AMX (%(default)s)")


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
    check_controls(options)
    if options.out is None and process_count() > 1:
        raise ValueError("several processes need one folder: give --out.")


def check_controls(options: argparse.Namespace) -> None:
    """Refuse limits and weights of a control that there is not."""
    masked = options.mask is not None or options.source_mask is not None
    used = edit_values(options)
    for name in ("guess", "control_start", "control_end"):
        if used[name] is not None and not masked and not options.also_control:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} does nothing without --mask or --also-control: add one of them.")
    if options.control_scale is not None and not masked:
        raise ValueError("--control-scale does nothing without --mask, whose weight it is: add that.")


def check_seeds_matter(options: argparse.Namespace, plan: Plan) -> None:
    """Refuse several samples of one subject where they would be the same picture under different seeds."""
    if not draws_no_noise(options):
        return
    subjects = Counter(subject.label for subject in plan.subjects)
    most = plan.n if plan.counts is None else max(
        count / subjects[label] for label, count in zip(CLASSES, plan.counts, strict=True) if count
    )  # fmt: skip
    if most > 1:
        option = "--invert" if options.invert else "--strength 0"
        raise ValueError(f"{option} draws no noise: all samples of one subject would be one picture. Use --n 1.")


def ignored_notes(options: argparse.Namespace, settings: Settings) -> list[str]:
    """A sentence for every option that acts otherwise than it looks beside the others."""
    notes, edits = [], edit_values(options)
    given = {"negative-prompt": bool(options.negative_prompt)}
    given |= {name: edits[name.replace("-", "_")] is not None for name in ("guidance-rescale", "guidance-interval")}
    if settings.guidance == 1:
        why = "" if options.guidance == 1 else ", which the model has of its own here"
        notes += [f"--{name} does nothing at guidance 1{why}." for name, used in given.items() if used]
    if settings.sampler == "ddpm" and settings.eta != 0:
        notes.append("--eta does nothing with --sampler ddpm.")
    if options.fast and wants_edit(options):
        notes.append("--fast does nothing here: samples with edits, limits or strips are drawn one by one.")
    if options.watermark and options.inpaint is not None and not options.no_paste:
        notes.append("--watermark changes pixels outside --inpaint too, by a few grey levels.")
    return notes


def first_free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist."""
    candidates = (out if i == 1 else out.with_name(f"{out.name}-{i}") for i in count(1))
    return next(path for path in candidates if not path.exists())
