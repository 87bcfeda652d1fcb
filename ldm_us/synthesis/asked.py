"""What a call asked for, brought together with the model: samples, recipe, fields and notes."""

import secrets
from dataclasses import replace
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ldm_us.data.words import Words
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.ddim import check_steps
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.files.pictures import to_picture
from ldm_us.runtime.entry import note
from ldm_us.runtime.machine import emulation_notes
from ldm_us.synthesis.fields import Fields, origin_fields
from ldm_us.synthesis.folder import COMMAND, begun_with
from ldm_us.synthesis.inputs import check_files, check_masks, load_added, own_sizes, resizing_notes
from ldm_us.synthesis.option_checks import check_seeds_matter, cut_notes, ignored_notes
from ldm_us.synthesis.options import SampleOptions
from ldm_us.synthesis.plan import Plan, make_plan
from ldm_us.synthesis.recipe import Recipe
from ldm_us.synthesis.subjects import left_out, with_source
from ldm_us.synthesis.watermark import add_watermark, check_watermark_size, watermark_version
from ldm_us.synthesis.weights import framing_of


class Settled(NamedTuple):
    """All that the samples of a call share, decided before the first is drawn."""

    plan: Plan  # with the size of each sample
    recipe: Recipe  # resolved
    added: list[ControlTerm]  # its further ControlNets
    fields: Fields  # what every picture says
    masks_sha256: str | None
    notes: list[str]  # what is doubtful and stops nothing


def settle(options: SampleOptions, plan: Plan, model: LatentDiffusion, weights_fields: Fields, words: Words) -> Settled:
    """Bring a plan and a model together. Raise ValueError, before anything is written, for what does not fit."""
    plan, recipe = own_sizes(plan, options.recipe, framing_of(options.source, model.config))
    recipe = resolved(options, recipe, model, plan, words)
    check_files(recipe, model, {subject.prompt for subject in plan.subjects}, words)
    added = load_added(recipe, model, options.device)
    fields = origin_fields(options.device) | weights_fields | {"settings": recipe.to_dict()}
    fields |= more_fields(options, min(min(recipe.at(one.size).size.size) for one in plan.subjects))
    masks_sha256, mask_notes = check_masks(plan, recipe)
    prompt = None if options.prompt is None else recipe.plain(options.prompt)
    notes = words.notes(prompt, sorted({subject.label for subject in plan.subjects}))
    notes += ignored_notes(recipe, options.recipe.sampling.guidance, options.fast, options.watermark)
    notes += emulation_notes(recipe.sampling.precision, options.device)
    notes += [
        *cut_notes(plan, recipe, model.config.text),
        *resizing_notes(recipe, plan.hint),
        *left_out(options.mask),
        *mask_notes,
    ]
    return Settled(plan, recipe, added, fields, masks_sha256, notes)


def plan_of(options: SampleOptions, words: Words) -> Plan:
    """Which samples the options ask for."""
    once = options.n is None and options.balance is None and options.recipe.draws_no_noise
    n, seed = 1 if once else options.n, seed_of(options)
    plan = make_plan(options.labels, options.prompt, options.mask, n, seed, options.balance, options.layout, words)
    check_seeds_matter(options.recipe, plan)
    return plan


def seed_of(options: SampleOptions) -> int:
    """The seed of the first sample; --seed random draws one, unless it goes on with a folder, which has one."""
    if options.seed is not None:
        return options.seed
    goes_on = options.out is not None and (options.out / COMMAND).is_file() and not options.overwrite
    begun = begun_with(options.out).get("seed") if goes_on and options.out is not None else None
    seed = begun if isinstance(begun, int) else secrets.randbelow(2**32)
    note(f"--seed random is {seed}{f', as {options.out} has it' if goes_on else ''}: --seed {seed} draws the same.")
    return seed


def resolved(options: SampleOptions, recipe: Recipe, model: LatentDiffusion, plan: Plan, words: Words) -> Recipe:
    """The recipe with the model's own values where nothing was asked for. Raise ValueError where they do not fit."""
    if plan.masked and model.controlnet is None:
        weights = options.source.weights
        raise ValueError(f"{weights}: no ControlNet in it to follow --mask. Train one: `train.py controlnet`.")
    sampling = recipe.sampling.resolved(model.config, plan.masked)
    check_steps(model.schedule, sampling.steps)
    begin = with_source(recipe.begin, options.source_class, words)
    return replace(recipe, sampling=sampling, begin=begin).settled(model.schedule, plan.last_seed)


def more_fields(options: SampleOptions, size: int) -> Fields:
    """What a picture says of --watermark and --drop-memorised, where they are asked for."""
    fields: Fields = {}
    if options.drop_memorised is not None:
        fields["drop_memorised_sha256"] = sha256_file(options.drop_memorised)
    if options.watermark:
        check_watermark_size(size)
        fields["watermark"] = watermark_version()
    return fields


def grey_picture(x: Tensor, watermark: bool) -> Image.Image:
    """(3, H, W) in [0, 1] -> the picture of a sample: its three channels are one grey image."""
    picture = to_picture(x.mean(dim=0, keepdim=True))
    return add_watermark(picture) if watermark else picture
