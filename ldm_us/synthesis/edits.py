"""Samples with the options of edit_options.py: edits of an image, limits of control, pictures of the way."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm_us.conditions import Conditions
from ldm_us.controls import ControlTerm, mask_hint
from ldm_us.data.records import CLASSES, class_prompt, load_mask
from ldm_us.edit_options import STRENGTH, edit_values, guidance_of, load_init
from ldm_us.editing import image_to_image
from ldm_us.explain import attention_picture, control_picture, record
from ldm_us.guidance import Guidance
from ldm_us.inpainting import inpaint
from ldm_us.inversion import edit_by_inversion
from ldm_us.model import LatentDiffusion
from ldm_us.pictures import save_png
from ldm_us.sampling import Step, Walk, generate
from ldm_us.subjects import check_mask
from ldm_us.synthesis.drawing import Settings, Wanted, cpu_threads
from ldm_us.trajectory import trajectory

SHARED = ("guidance", "control_scale", "negative_prompt", "sampler", "steps", "eta")  # what Settings knows better


def wants_edit(options: argparse.Namespace) -> bool:
    """Whether any of the options is used."""
    return any(value is not None for value in edit_values(options).values())


def draw_edits(
    options: argparse.Namespace,
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    settings: Settings,
    added: Sequence[ControlTerm] = (),
    out: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """n samples -> images (n, 3, H, W) in [0, 1] on the CPU, one at a time; pictures of the way go to `out`.

    added: the ControlNets of --also-control.
    """
    shared = dataclasses.asdict(settings)
    options = argparse.Namespace(**{**vars(options), **{name: shared[name] for name in SHARED}})
    images = []
    for prompt, seed, mask in wanted:
        masks = None if mask is None else mask[None]
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16")
        with torch.no_grad(), cpu_threads(settings.threads), autocast:
            x, pictures = sample_batch(options, model, [prompt], masks, [seed], settings.size, on_step, added)
        images.append(x.float().cpu())
        if out is not None:
            for name, picture in pictures.items():
                save_png(picture, out / (f"{name}.png" if f"seed{seed}" in name else f"{name}_seed{seed}.png"))
    return torch.cat(images)


def sample_batch(
    options: argparse.Namespace,
    model: LatentDiffusion,
    prompts: list[str],
    masks: Tensor | None,
    seeds: list[int],
    size: int,
    on_step: Callable[[Step], None] | None = None,
    added: Sequence[ControlTerm] = (),
) -> tuple[Tensor, dict[str, Image.Image]]:
    """Samples or edits (b, 3, H, W) in [0, 1] of prompts, masks (b, 1, H, W) and seeds, and pictures by their names.

    added: the ControlNets of --also-control, one hint (1, 3, H, W) for all samples.
    """
    steps: list[Step] = []

    def see(step: Step) -> None:
        if options.trajectory:
            steps.append(step)
        if on_step is not None:
            on_step(step)

    with ExitStack() as stack:
        seen = stack.enter_context(record(model, len(prompts))) if options.explain else None
        images = draw_images(options, model, prompts, masks, seeds, size, see, added)
    pictures: dict[str, Image.Image] = {}
    if seen is not None and seen.layers:
        pictures["attention"] = attention_picture(seen, images, prompts)
    for i, seed in enumerate(seeds):
        if steps:
            pictures[f"trajectory_seed{seed}"] = trajectory(model, steps, sample=i)
        if seen is not None and seen.control:
            pictures[f"control_seed{seed}"] = control_picture(seen, sample=i)
    return images, pictures


def draw_images(
    options: argparse.Namespace,
    model: LatentDiffusion,
    prompts: list[str],
    masks: Tensor | None,
    seeds: list[int],
    size: int,
    on_step: Callable[[Step], None],
    added: Sequence[ControlTerm],
) -> Tensor:
    """Pick the way to the samples: from noise, from a noised image, by region or by inversion."""
    walk = Walk(options.sampler, options.steps, options.eta)
    controls = controls_of(options, model, masks) + [limited(options, term, len(prompts)) for term in added]
    conditions = Conditions(prompts, options.negative_prompt, guidance_of(options), controls)
    if options.init is None:
        return generate(
            model,
            prompts,
            negative_prompts=options.negative_prompt,
            seeds=seeds,
            size=size,
            sampler=options.sampler,
            steps=options.steps,
            eta=options.eta,
            guidance=conditions.guidance,
            controls=conditions.controls,
            on_step=on_step,
        )
    x = load_init(options.init, size).expand(len(prompts), -1, -1, -1)
    if options.inpaint is not None:
        region = load_mask([options.inpaint], size).expand(len(prompts), -1, -1, -1)
        extra = {"resample": options.resample, "paste": not options.no_paste}
        return inpaint(model, x, region, conditions, seeds=seeds, walk=walk, on_step=on_step, **extra)
    if options.invert:
        strength = 1.0 if options.strength is None else options.strength
        source = source_conditions(options, model, prompts, size)
        extra = {"strength": strength, "steps": options.steps, "iterations": options.iterations}
        return edit_by_inversion(model, x, source, conditions, on_step=on_step, **extra)
    strength = STRENGTH if options.strength is None else options.strength
    return image_to_image(model, x, conditions, strength=strength, seeds=seeds, walk=walk, on_step=on_step)


def controls_of(options: argparse.Namespace, model: LatentDiffusion, masks: Tensor | None) -> list[ControlTerm]:
    """The control of masks (b, 1, H, W) by the model's ControlNet; none without masks."""
    if masks is None:
        return []
    if model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it to follow a mask. Train one: `train.py controlnet`.")
    term = ControlTerm(model.controlnet, mask_hint(masks), options.control_scale)
    return [limited(options, term, len(masks))]


def limited(options: argparse.Namespace, term: ControlTerm, batch: int) -> ControlTerm:
    """A term for `batch` samples, with --control-start, --control-end and --guess."""
    hint = term.hint.expand(batch, -1, -1, -1)
    start, end = options.control_start, options.control_end
    return dataclasses.replace(term, hint=hint, start=start, end=end, guess=options.guess)


def source_conditions(options: argparse.Namespace, model: LatentDiffusion, prompts: list[str], size: int) -> Conditions:
    """What --init shows, for its inversion at guidance 1: by default what the samples are to show."""
    if options.source_class:
        prompts = [class_prompt(options.source_class)] * len(prompts)
    elif options.source_prompt is not None:
        prompts = [options.source_prompt] * len(prompts)
    masks = None
    if options.source_mask is not None:
        mask = load_mask([options.source_mask], size)
        label = next((label for label in CLASSES if prompts[0] == class_prompt(label)), "")
        check_mask(label, bool(mask.any()), f"--source-mask {options.source_mask}")
        masks = mask.expand(len(prompts), -1, -1, -1)
    return Conditions(prompts, "", Guidance(1.0), controls_of(options, model, masks))
