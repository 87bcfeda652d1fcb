"""The options of sample.py that edit an image, limit guidance and control, or show how a sample came about.

add_edit_options(parser), then check_edit_options(options, size) before anything is loaded. What they do:
ldm_us/synthesis/edits.py.
"""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_us.data.records import CLASSES, image_tensor, load_mask, open_image
from ldm_us.diffusion.controls import check_span
from ldm_us.diffusion.editing import first_step
from ldm_us.diffusion.guidance import Guidance
from ldm_us.diffusion.inpainting import check_region
from ldm_us.diffusion.inversion import ITERATIONS
from ldm_us.files.atomic import sha256_file
from ldm_us.synthesis.added_controls import added_fields, load_hint, parse_added

MODES = ("1", "L", "RGB")  # of an image to be edited
STRENGTH = 0.6  # of image to image, unless told
NEEDS = {  # options that act with another one only
    "init": {"strength", "inpaint", "invert"},
    "inpaint": {"resample", "no_paste"},
    "invert": {"source_class", "source_prompt", "source_mask", "iterations"},
}


def add_edit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to sample.py's; each default changes nothing."""
    add = parser.add_argument_group("editing an image").add_argument
    add("--init", type=Path, metavar="IMAGE", help="start from this image")
    add("--strength", type=float, metavar="X", help=f"0 as it is, 1 all steps ({STRENGTH}; --invert 1)")
    add("--inpaint", type=Path, metavar="REGION", help="change --init only where this mask is white")
    add("--resample", type=int, default=1, metavar="N", help="--inpaint: times each step is taken (%(default)s)")
    add("--no-paste", action="store_true", help="--inpaint: outside, show --init reconstructed")
    add("--invert", action="store_true", help="start from the noise that leads to --init")
    add("--source-class", choices=CLASSES, metavar="NAME", help="--invert: class of --init (that of the sample)")
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


def check_edit_options(options: argparse.Namespace, size: int) -> None:
    """Refuse what does not fit together, and files that do not fit the samples, before a model is loaded."""
    given = {name for name, value in edit_values(options).items() if value is not None}
    for needed, names in NEEDS.items():
        if alone := sorted(given & names) if needed not in given else []:
            raise ValueError(f"--{alone[0].replace('_', '-')} does nothing without --{needed}: add that.")
    if options.invert and options.inpaint:
        raise ValueError("--invert and --inpaint are two ways to edit --init: give one of them.")
    if options.inpaint and options.strength is not None:
        raise ValueError("--strength and --inpaint: a region is drawn anew as a whole. Leave out one of them.")
    if options.source_class and options.source_prompt is not None:
        raise ValueError("--source-class and --source-prompt both say what --init shows: give one of them.")
    if options.invert and (options.sampler != "ddim" or options.eta != 0.0):
        raise ValueError("--invert is exact for --sampler ddim --eta 0 alone.")
    if options.invert and options.explain:
        raise ValueError("--explain follows the way from noise to image, and --invert also walks back: leave out one.")
    for name, least in (("resample", 1), ("iterations", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)}: use {least} or more.")
    if options.strength is not None:
        first_step(options.strength, options.steps)
    if options.strength == 0 and (options.trajectory or options.explain):
        raise ValueError("--strength 0 takes no step that --trajectory or --explain could show: leave them out.")
    if options.init is not None:
        x = load_init(options.init, size)[None]
        if options.inpaint is not None:
            check_region(x, load_mask([options.inpaint], size)[None])
    for control in parse_added(options.also_control):
        load_hint(control.hint, size)
    guidance_of(options, scale=1.0)
    check_span(options.control_start, options.control_end)


def resizing_notes(options: argparse.Namespace, size: int) -> list[str]:
    """A sentence for every mask or hint that is not of the samples' size."""
    files = [path for path in (options.inpaint, options.source_mask) if path is not None]
    files += [control.hint for control in parse_added(options.also_control)]
    sizes = {path: open_image(path).size for path in files}
    return [
        f"{path} of {width}x{height} resized to {size}x{size}, each pixel from the nearest one."
        for path, (width, height) in sizes.items()
        if (width, height) != (size, size)
    ]


def guidance_of(options: argparse.Namespace, scale: float) -> Guidance:
    """The guidance of these options with its scale, the option's or the model's own."""
    interval = options.guidance_interval
    return Guidance(scale, options.guidance_rescale, None if interval is None else tuple(interval))


def load_init(path: Path, size: int) -> Tensor:
    """The image to be edited, (3, size, size) in [-1, 1]; it has to have that size, so that pixels stay pixels."""
    picture = open_image(path)
    if picture.mode not in MODES:
        raise ValueError(f"--init {path} has mode {picture.mode}. Save it as 8-bit grey or RGB.")
    if picture.size != (size, size):
        raise ValueError(
            f"--init {path} is {picture.width}x{picture.height}, but the samples are {size}x{size}. Resize it, or give "
            "--size."
        )
    return image_tensor(picture, size)


def edit_fields(options: argparse.Namespace) -> dict[str, Any]:
    """What a sample's fields must say beyond the plain ones, to make it again; nothing where no option was used."""
    fields: dict[str, Any] = {}
    for name, value in edit_values(options).items():
        if name == "also_control" and value is not None:
            fields[name] = added_fields(parse_added(value))
        elif isinstance(value, Path):
            fields |= {name: value.name, f"{name}_sha256": sha256_file(value)}
        elif value is not None and name not in ("trajectory", "explain"):
            fields[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return fields


def wants_edit(options: argparse.Namespace) -> bool:
    """Whether any of the options is used."""
    return any(value is not None for value in edit_values(options).values())


def draws_no_noise(options: argparse.Namespace) -> bool:
    """Whether the seed changes nothing: the noise comes from the image, or there is none."""
    return bool(options.invert) or options.strength == 0


def walked_steps(options: argparse.Namespace, steps: int) -> int:
    """How many of the steps a sample takes: all, but for an image to image that starts further on."""
    if options.init is None or options.inpaint is not None:
        return steps
    strength = options.strength if options.strength is not None else 1.0 if options.invert else STRENGTH
    return steps - first_step(strength, steps)


def edit_values(options: argparse.Namespace) -> dict[str, Any]:
    """The values of the options of this file by name; None for those that are at their default."""
    defaults = edit_defaults()
    values = {name: getattr(options, name) for name in defaults}
    return {name: None if value == defaults[name] else value for name, value in values.items()}


def edit_defaults() -> dict[str, Any]:
    """The options of this file by name, each with the value that changes nothing."""
    plain = argparse.ArgumentParser()
    add_edit_options(plain)
    return vars(plain.parse_args([]))
