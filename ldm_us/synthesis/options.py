"""The command line of sample.py: what can be asked for. It is parsed once, into a SampleOptions."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ldm_us.diffusion.inversion import ITERATIONS
from ldm_us.diffusion.sampling import SAMPLERS, Sampling
from ldm_us.files.checkpoint import BUNDLED
from ldm_us.runtime.processes import local_device
from ldm_us.synthesis.option_checks import check_options, check_verify_options
from ldm_us.synthesis.plan import LAYOUTS
from ldm_us.synthesis.recipe import AddedControl, Beginning, FromImage, FromNoise, Given, Inversion, Recipe, Region
from ldm_us.synthesis.weights import Source, parse_lora

EDIT_FILES = ("init", "inpaint", "source_mask")
# What --verify looks at; everything else it reads from the picture.
OF_VERIFY = ("verify", "weights", "controlnet", "lora", "device", "mask", "also_control", *EDIT_FILES)


@dataclass(frozen=True)
class SampleOptions:
    """What a user asked of sample.py. None: not asked for."""

    source: Source
    recipe: Recipe
    labels: list[str]
    prompt: str | None
    mask: Path | None
    source_class: str | None  # of what is inverted; the model has its prompt
    n: int | None
    balance: list[float] | None
    seed: int | None  # of the first sample; None: drawn from the system
    layout: str  # of LAYOUTS
    batch: int  # images at a time
    device: str
    out: Path | None
    overwrite: bool
    watermark: bool
    strips: tuple[str, ...]  # pictures of how a sample came about
    fast: bool  # asked for; the recipe says whether it can be
    drop_memorised: Path | None
    data: list[Path] | None
    info: bool
    verify: Path | None
    given: Given  # the files of an edit, by option, for --verify


def parse_options(argv: Sequence[str] | None = None) -> SampleOptions:
    """Parse and check a command line. Raise ValueError, in one sentence, for options that do not fit together."""
    parser = build_parser()
    parsed, defaults = parser.parse_args(argv), vars(parser.parse_args([]))
    values = vars(parsed)
    changed = [name for name in values if values[name] != defaults[name]]
    if parsed.verify is not None:
        check_verify_options(parsed.device, [name for name in changed if name not in OF_VERIFY])
    elif not parsed.info:
        check_options(values, changed)
    as_given = ("labels", "prompt", "mask", "source_class", "n", "balance", "seed", "layout", "batch", "out")
    more = ("overwrite", "watermark", "fast", "drop_memorised", "data", "info", "verify")
    added = [Path(word) for words in parsed.also_control for word in words[:2]]
    return SampleOptions(
        source=Source(parsed.weights, parsed.controlnet, tuple(parsed.lora)),
        recipe=Recipe() if parsed.verify is not None else recipe_of(values),
        device=local_device(parsed.device),
        strips=tuple(name for name in ("trajectory", "explain") if values[name]),
        given={name: [values[name]] for name in EDIT_FILES if values[name] is not None} | {"also_control": added},
        **{name: values[name] for name in (*as_given, *more)},
    )


def recipe_of(values: dict[str, Any]) -> Recipe:
    """How the samples are drawn. Edits and strips are drawn one by one, whatever --fast says."""
    begin, interval = beginning_of(values), values["guidance_interval"]
    alone = not isinstance(begin, FromNoise) or values["trajectory"] or values["explain"]
    same = ("sampler", "steps", "eta", "guidance", "guidance_rescale", "control_scale", "control_start", "control_end")
    sampling = Sampling(
        exact=bool(alone or not values["fast"]),
        guidance_interval=None if interval is None else tuple(interval),
        **{name: values[name] for name in (*same, "guess", "size", "precision", "threads", "prior", "grain")},
    )
    return Recipe(sampling, values["negative_prompt"], begin, tuple(map(parse_added, values["also_control"])))


def beginning_of(values: dict[str, Any]) -> Beginning:
    """What the samples begin with."""
    init = values["init"]
    strength = {} if values["strength"] is None else {"strength": values["strength"]}
    if init is None:
        return FromNoise()
    if values["inpaint"] is not None:
        return Region(init, values["inpaint"], values["resample"], not values["no_paste"])
    if not values["invert"]:
        return FromImage(init, **strength)
    iterations, shown, source_mask = values["iterations"], values["source_prompt"], values["source_mask"]
    return Inversion(init, iterations=iterations, source_prompt=shown, source_mask=source_mask, **strength)


def parse_added(words: Sequence[str]) -> AddedControl:
    """--also-control FILE HINT X. Raise ValueError for an X that is no number."""
    path, hint, text = words
    try:
        return AddedControl(Path(path), Path(hint), float(text))
    except ValueError as error:
        raise ValueError(f"--also-control {path} {hint} {text}: the weight {text} is not a finite number.") from error


def seed(text: str) -> int | None:
    """--seed N, or random: None."""
    return None if text == "random" else int(text)


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
    add_edits(parser)
    add = parser.add_argument_group("copies of training images").add_argument
    add("--drop-memorised", type=Path, metavar="REPORT", help="draw again what memorisation.json calls a copy")
    add("--data", type=Path, nargs="+", metavar="DIR", help="--drop-memorised: the training data")
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
    add("--class", dest="labels", action="append", default=[], metavar="NAME", help="of the model's, see --info (all)")
    add("--prompt", metavar="TEXT", help="any other text instead of a class")
    add("--negative-prompt", default="", metavar="TEXT", help="what to steer away from (nothing)")
    add("--mask", type=Path, metavar="PATH", help="a mask, white on black, or a folder of masks")
    add("--n", type=int, metavar="N", help="samples of each; with --balance of all (4)")
    add("--balance", type=float, nargs="+", metavar="X", help="shares or counts, in the order of --info")
    add("--seed", type=seed, default=0, metavar="N", help="of the first sample; others follow; or random (%(default)s)")


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
    add("--no-prior", dest="prior", action="store_false", help="start from N(0, I), not from the start prior")
    add("--no-grain", dest="grain", action="store_false", help="what latents hold: no grain, no noise of the decoder")
    add("--size", type=int, metavar="PIXELS", help="side of the images (that of the model)")
    add("--batch", type=int, default=4, metavar="N", help="images at a time; changes no bit (%(default)s)")
    add("--fast", action="store_true", help="a batch in one call, which changes the last bits")
    add("--threads", type=int, default=1, metavar="N", help="of the CPU; they fix the bits too (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, for GPUs and AMX (%(default)s)")


def add_edits(parser: argparse.ArgumentParser) -> None:
    """Edits of an image, limits of guidance and control, and strips; each default changes nothing."""
    add = parser.add_argument_group("editing an image").add_argument
    add("--init", type=Path, metavar="IMAGE", help="start from this image")
    strengths = f"{FromImage.strength:g}; --invert {Inversion.strength:g}"
    add("--strength", type=float, metavar="X", help=f"0 as it is, 1 all steps ({strengths})")
    add("--inpaint", type=Path, metavar="REGION", help="change --init only where this mask is white")
    add("--resample", type=int, default=1, metavar="N", help="--inpaint: times each step is taken (%(default)s)")
    add("--no-paste", action="store_true", help="--inpaint: outside, show --init reconstructed")
    add("--invert", action="store_true", help="start from the noise that leads to --init")
    add("--source-class", metavar="NAME", help="--invert: class of --init (that of the sample)")
    add("--source-prompt", metavar="TEXT", help="--invert: what --init shows, if no class")
    add("--source-mask", type=Path, metavar="PATH", help="--invert: lesion of --init, moved to --mask")
    add("--iterations", type=int, default=ITERATIONS, metavar="N", help="--invert: refinements a step (%(default)s)")

    add = parser.add_argument_group("guidance and control").add_argument
    add("--guidance-rescale", type=float, default=0.0, metavar="X", help="0 none to 1 (%(default)s)")
    add("--guidance-interval", type=float, nargs=2, metavar=("LO", "HI"), help="noise levels that are guided (all)")
    add("--control-start", type=float, default=0.0, metavar="X", help="share of the steps before the mask acts (0)")
    add("--control-end", type=float, default=1.0, metavar="X", help="share of the steps until it does not (1)")
    add("--guess", action="store_true", help="guess mode: the mask says what to draw")
    add(
        "--also-control",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "HINT", "X"),
        help="add FILE's ControlNet on HINT, weight X; repeats",
    )

    add = parser.add_argument_group("pictures of how a sample came about").add_argument
    add("--trajectory", action="store_true", help="latents and predicted images through time")
    add("--explain", action="store_true", help="attention to each word; the mask's effect")
