"""What the command line of sample.py makes no sense with: refused before anything is loaded, or told in a note."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from ldm_us.config import TextConfig
from ldm_us.networks.clip import check_prompt_tokens, kept_text
from ldm_us.runtime.checks import check_device, check_finite, check_seed
from ldm_us.runtime.processes import process_count
from ldm_us.synthesis.plan import Plan
from ldm_us.synthesis.recipe import Inversion, Recipe, Region

NEEDS = {  # options that act with another one only
    "init": ("strength", "inpaint", "invert"),
    "inpaint": ("resample", "no_paste"),
    "invert": ("source_class", "source_prompt", "source_mask", "iterations"),
}
Options = Mapping[str, Any]  # by the names of the command line


def check_options(options: Options, given: Sequence[str]) -> None:
    """Refuse numbers that make no sense, and options that do nothing beside the others; given: those not at default."""
    for name, least in (("n", 1), ("batch", 1), ("threads", 1), ("resample", 1), ("iterations", 0)):
        if options[name] is not None and options[name] < least:
            raise ValueError(f"--{name} {options[name]}: use {least} or more.")
    check_device(options["device"], options["precision"])
    check_seed(options["seed"] or 0)
    check_finite({name: options[name] for name in ("eta", "guidance", "control_scale")})
    if not 0 <= options["eta"] <= 1:
        raise ValueError(f"--eta {options['eta']}: use 0 (no noise) to 1 (as much as ddpm).")
    for lora in options["lora"]:
        if not abs(lora.scale) < float("inf"):
            raise ValueError(f"--lora {lora.path}:{lora.scale}: use a finite scale.")
    check_combinations(options, given)
    if options["out"] is None and process_count() > 1:
        raise ValueError("several processes need one folder: give --out.")
    if options["seed"] is None and process_count() > 1:
        raise ValueError("--seed random: several processes need one seed. Give a number.")


def check_combinations(options: Options, given: Sequence[str]) -> None:
    """Refuse what does nothing beside the other options, or contradicts them."""
    masked = options["mask"] is not None or options["source_mask"] is not None
    for name in ("guess", "control_start", "control_end"):
        if name in given and not masked and not options["also_control"]:
            raise ValueError(f"{named(name)} does nothing without --mask or --also-control: add one of them.")
    if options["control_scale"] is not None and not masked:
        raise ValueError("--control-scale does nothing without --mask, whose weight it is: add that.")
    for needed, names in NEEDS.items():
        if alone := sorted(set(given) & set(names)) if needed not in given else []:
            raise ValueError(f"{named(alone[0])} does nothing without --{needed}: add that.")
    if options["exact"] and options["fast"]:
        raise ValueError("--exact draws one by one and --fast together: leave one of them out.")
    if options["invert"] and options["inpaint"]:
        raise ValueError("--invert and --inpaint are two ways to edit --init: give one of them.")
    if options["inpaint"] and options["strength"] is not None:
        raise ValueError("--strength and --inpaint: a region is drawn anew as a whole. Leave out one of them.")
    if options["source_class"] and options["source_prompt"] is not None:
        raise ValueError("--source-class and --source-prompt both say what --init shows: give one of them.")
    if options["sampler"] != "ddim" and options["eta"]:
        raise ValueError(f"--eta is of ddim and does nothing with --sampler {options['sampler']}: leave it out.")
    if options["invert"] and (options["sampler"] != "ddim" or options["eta"] != 0.0):
        raise ValueError("--invert is exact for --sampler ddim --eta 0 alone.")
    if options["invert"] and options["explain"]:
        raise ValueError("--explain follows the way from noise to image, and --invert also walks back: leave out one.")
    if options["strength"] == 0 and (options["trajectory"] or options["explain"]):
        raise ValueError("--strength 0 takes no step that --trajectory or --explain could show: leave them out.")
    if (options["drop_memorised"] is None) != (options["data"] is None):
        raise ValueError("--drop-memorised and --data belong together: give both, or none.")
    if options["drop_memorised"] is not None and options["init"] is not None:
        raise ValueError("--drop-memorised: an edit is meant to look like its original. Leave it away when editing.")


def check_verify_options(device: str, ignored: Sequence[str]) -> None:
    """Refuse options beside --verify that it would not look at."""
    check_device(device)
    if ignored:
        raise ValueError(
            f"{named(ignored[0])} beside --verify does nothing: a picture is drawn again as its fields say. Leave it "
            "away."
        )


def check_seeds_matter(recipe: Recipe, plan: Plan) -> None:
    """Refuse several samples of one subject where they would be the same picture under different seeds."""
    check_seed(plan.last_seed)
    if recipe.draws_no_noise and len({sample.row for sample in plan}) < plan.total:
        option = "--invert" if isinstance(recipe.begin, Inversion) else "--strength 0"
        raise ValueError(f"{option} draws no noise: all samples of one subject would be one picture. Use --n 1.")


def ignored_notes(recipe: Recipe, asked_guidance: float | None, fast: bool, watermark: bool) -> list[str]:
    """A sentence for every option that acts otherwise than it looks beside the others, in a recipe that is resolved."""
    sampling, notes = recipe.sampling, []
    given = {
        "negative-prompt": bool(recipe.negative_prompt),
        "guidance-rescale": sampling.guidance_rescale != 0,
        "guidance-interval": sampling.guidance_interval is not None,
    }
    if sampling.guidance == 1:
        why = "" if asked_guidance == 1 else ", which the model has of its own here"
        notes += [f"--{name} does nothing at guidance 1{why}." for name, used in given.items() if used]
    if fast and sampling.exact:
        notes.append("--fast does nothing here: samples with edits or strips are drawn one by one.")
    if watermark and isinstance(recipe.begin, Region) and recipe.begin.paste:
        notes.append("--watermark changes pixels outside --inpaint too, by a few grey levels.")
    return notes


def cut_notes(plan: Plan, recipe: Recipe, text: TextConfig) -> list[str]:
    """A sentence for every prompt that has more tokens than the model reads, with the end of the part that counts."""
    text = replace(text, chunks=recipe.long_prompts or text.chunks)
    check_prompt_tokens(text, text.prompt_tokens)
    length = text.read
    prompts = [("the prompt", prompt) for prompt in dict.fromkeys(subject.prompt for subject in plan.subjects)]
    prompts += [("--negative-prompt", recipe.negative_prompt)]
    if isinstance(recipe.begin, Inversion):
        prompts += [("--source-prompt", recipe.begin.source_prompt or "")]
    cut = [(name, *kept_text(recipe.plain(prompt), length)) for name, prompt in prompts]
    return [
        f"{name} has {count} tokens with start and end of text, and the model reads {length}: nothing counts after "
        f"'...{kept[-40:]}'."
        for name, count, kept in cut
        if count > length
    ]


def first_free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist."""
    candidates = (out if i == 1 else out.with_name(f"{out.name}-{i}") for i in count(1))
    return next(path for path in candidates if not path.exists())


def named(name: str) -> str:
    """An option as the command line has it."""
    return "--class" if name == "labels" else f"--{name.replace('_', '-')}"
