"""What a user asked of sample.py: its command line, parsed once, into a SampleOptions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_us.data.opening import open_image
from ldm_us.diffusion.sampling import Sampling
from ldm_us.runtime.command_line import short_usage
from ldm_us.runtime.machine import half_precision
from ldm_us.runtime.processes import local_device
from ldm_us.synthesis.command_line import build_parser
from ldm_us.synthesis.fields import Fields
from ldm_us.synthesis.folder import COMMAND, MANIFEST, begun_with, read_list
from ldm_us.synthesis.option_checks import check_options, check_verify_options
from ldm_us.synthesis.recipe import AddedControl, Beginning, FromImage, FromNoise, Given, Inversion, Recipe, Region
from ldm_us.synthesis.verify import fields_of
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
    batch: int | None  # images at a time; None: see at_a_time
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
    parser = short_usage(build_parser())
    parsed, defaults = parser.parse_args(argv), vars(parser.parse_args([]))
    values = vars(parsed)
    changed = [name for name in values if values[name] != defaults[name]]
    before = made_with(parsed.verify, None if parsed.overwrite else parsed.out)
    values |= usual_steps(values, {} if parsed.verify is not None else before)
    values["device"] = local_device(parsed.device, like=str(before.get("device", "")).partition(",")[0])
    values["lora"] = [parse_lora(text) for text in parsed.lora]
    if parsed.verify is not None:
        check_verify_options(parsed.device, [name for name in changed if name not in OF_VERIFY])
    elif not parsed.info:
        check_options(values, changed)
    as_given = ("labels", "prompt", "mask", "source_class", "n", "balance", "seed", "layout", "batch", "out")
    more = ("overwrite", "watermark", "fast", "drop_memorised", "data", "info", "verify")
    added = [Path(word) for words in parsed.also_control for word in words[:2]]
    return SampleOptions(
        source=Source(parsed.weights, parsed.controlnet, tuple(parsed.lora)),
        recipe=Recipe() if parsed.verify is not None or parsed.info else recipe_of(values),
        device=parsed.device,
        strips=tuple(name for name in ("trajectory", "explain") if values[name]),
        given={name: [values[name]] for name in EDIT_FILES if values[name] is not None} | {"also_control": added},
        **{name: values[name] for name in (*as_given, *more)},
    )


def usual_steps(values: dict[str, Any], begun: Fields) -> dict[str, Any]:
    """The sampler and its steps where they are not asked for: as the folder was begun, else dpm with 20.

    ddim with 50 where it alone can do what is asked for; docs/benchmarks.md has the figures.
    """
    of_ddim = values["eta"] or values["inpaint"] is not None or values["invert"]
    sampler = values["sampler"] or begun.get("sampler") or ("ddim" if of_ddim else "dpm")
    enough = begun.get("steps") or (20 if sampler == "dpm" else 50)
    return {"sampler": sampler, "steps": enough if values["steps"] is None else values["steps"]}


def made_with(verified: Path | None, out: Path | None) -> Fields:
    """What a picture, or the first of a folder, says that it was made with, or a folder was begun with; {} for none."""
    if verified is not None and verified.is_file():
        return dict(fields_of(open_image(verified)))
    if verified is not None and (verified / MANIFEST).is_file():
        return next(read_list(verified / MANIFEST), {})
    return begun_with(out) if verified is None and out is not None and (out / COMMAND).is_file() else {}


def recipe_of(values: dict[str, Any]) -> Recipe:
    """How the samples are drawn: on a GPU together, unless told; edits and strips one by one, whatever is told."""
    on_gpu = values["device"].startswith("cuda")
    begin, interval = beginning_of(values), values["guidance_interval"]
    alone = not isinstance(begin, FromNoise) or values["trajectory"] or values["explain"]
    same = ("sampler", "steps", "eta", "guidance", "guidance_rescale", "control_scale", "control_start", "control_end")
    half = half_precision(values["device"]) if on_gpu and not values["exact"] else "fp32"
    sampling = Sampling(
        exact=bool(alone or values["exact"] or not (values["fast"] or on_gpu)),
        precision=values["precision"] or half,
        guidance_interval=None if interval is None else tuple(interval),
        **{name: values[name] for name in (*same, "guess", "size", "tile", "threads", "prior", "grain")},
    )
    added = tuple(map(parse_added, values["also_control"]))
    read = {name: values[name] for name in ("prompt_weights", "long_prompts")}
    return Recipe(sampling, values["negative_prompt"], begin, added, **read)


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
