"""Samples with the options of edit_options.py: edits of an image, limits of control, pictures of the way."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm_us.data.records import class_prompt, load_mask, prompted_class
from ldm_us.diffusion.conditions import Conditions
from ldm_us.diffusion.controls import ControlTerm, mask_hint
from ldm_us.diffusion.editing import image_to_image
from ldm_us.diffusion.guidance import Guidance
from ldm_us.diffusion.inpainting import inpaint
from ldm_us.diffusion.inversion import edit_by_inversion
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Step, Walk, generate
from ldm_us.synthesis.drawing import Settings, Wanted, autocast, cpu_threads, draw_images
from ldm_us.synthesis.edit_options import STRENGTH, guidance_of, load_init, wants_edit
from ldm_us.synthesis.explain import attention_picture, control_picture, record
from ldm_us.synthesis.subjects import check_mask
from ldm_us.synthesis.trajectory import trajectory


class Drawn(NamedTuple):
    """A sample, and pictures of how it came about."""

    x: Tensor  # (3, H, W) in [0, 1], on the CPU
    strips: dict[str, Image.Image]  # by their kind


def draw_samples(
    options: argparse.Namespace,
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    settings: Settings,
    added: Sequence[ControlTerm] = (),
    on_step: Callable[[Step], None] | None = None,
) -> list[Drawn]:
    """Draw samples: plain ones with draw_images, with the options of edit_options.py one at a time.

    added: the ControlNets of --also-control, with hints (1, 3, H, W).
    """
    if not wants_edit(options):
        return [Drawn(x, {}) for x in draw_images(model, wanted, settings, on_step)]
    return [draw_edit(options, model, one, settings, added, on_step) for one in wanted]


def draw_edit(
    options: argparse.Namespace,
    model: LatentDiffusion,
    one: Wanted,
    settings: Settings,
    added: Sequence[ControlTerm] = (),
    on_step: Callable[[Step], None] | None = None,
) -> Drawn:
    """Draw one sample with these options, and what --trajectory and --explain show of it."""
    steps: list[Step] = []

    def see(step: Step) -> None:
        if options.trajectory:
            steps.append(step)
        if on_step is not None:
            on_step(step)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(cpu_threads(settings.threads))
        stack.enter_context(autocast(model, settings))
        with record(model, 1) if options.explain else nullcontext() as seen:
            x = edited(options, model, one, settings, added, see)
        strips = {"trajectory": trajectory(model, steps)} if steps else {}
        if seen is not None:
            strips["attention"] = attention_picture(seen, x, [one.prompt])
            strips |= {"control": control_picture(seen)} if seen.control else {}
    return Drawn(x[0].float().cpu(), strips)


def edited(
    options: argparse.Namespace,
    model: LatentDiffusion,
    one: Wanted,
    settings: Settings,
    added: Sequence[ControlTerm],
    on_step: Callable[[Step], None],
) -> Tensor:
    """Pick the way to the sample (1, 3, H, W): from noise, from a noised image, by region or by inversion."""
    walk = Walk(settings.sampler, settings.steps, settings.eta)
    controls = [*mask_control(options, model, one.mask, settings), *(limited(options, term) for term in added)]
    guidance = guidance_of(options, settings.guidance)
    conditions = Conditions([one.prompt], settings.negative_prompt, guidance, controls)
    if options.init is None:
        return generate(
            model,
            [one.prompt],
            negative_prompts=settings.negative_prompt,
            seeds=[one.seed],
            size=settings.size,
            sampler=walk.sampler,
            steps=walk.steps,
            eta=walk.eta,
            guidance=guidance,
            controls=controls,
            on_step=on_step,
        )
    x = load_init(options.init, settings.size)[None]
    if options.inpaint is not None:
        region = load_mask([options.inpaint], settings.size)[None]
        extra = {"resample": options.resample, "paste": not options.no_paste}
        return inpaint(model, x, region, conditions, seeds=[one.seed], walk=walk, on_step=on_step, **extra)
    if options.invert:
        strength = 1.0 if options.strength is None else options.strength
        source = source_conditions(options, model, one.prompt, settings)
        extra = {"strength": strength, "steps": walk.steps, "iterations": options.iterations}
        return edit_by_inversion(model, x, source, conditions, on_step=on_step, **extra)
    strength = STRENGTH if options.strength is None else options.strength
    return image_to_image(model, x, conditions, strength=strength, seeds=[one.seed], walk=walk, on_step=on_step)


def mask_control(
    options: argparse.Namespace, model: LatentDiffusion, mask: Tensor | None, settings: Settings
) -> list[ControlTerm]:
    """The control of a mask (1, H, W) by the model's ControlNet; none without a mask."""
    if mask is None:
        return []
    if model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it to follow a mask. Train one: `train.py controlnet`.")
    return [limited(options, ControlTerm(model.controlnet, mask_hint(mask[None]), settings.control_scale))]


def limited(options: argparse.Namespace, term: ControlTerm) -> ControlTerm:
    """The term with --control-start, --control-end and --guess."""
    return dataclasses.replace(term, start=options.control_start, end=options.control_end, guess=options.guess)


def source_conditions(
    options: argparse.Namespace, model: LatentDiffusion, prompt: str, settings: Settings
) -> Conditions:
    """What --init shows, for its inversion at guidance 1: by default what the sample is to show.

    Raise ValueError for a --source-mask that does not fit its class, and where no ControlNet can follow it.
    """
    if options.source_class:
        prompt = class_prompt(options.source_class)
    elif options.source_prompt is not None:
        prompt = options.source_prompt
    mask = None
    if options.source_mask is not None:
        mask = load_mask([options.source_mask], settings.size)
        check_mask(prompted_class(prompt), bool(mask.any()), f"--source-mask {options.source_mask}")
    return Conditions([prompt], "", Guidance(1.0), mask_control(options, model, mask, settings))
