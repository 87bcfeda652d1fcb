"""Prompts, masks and seeds become samples here, by the way that a Recipe begins with.

Convolutions and matrix products round differently for another batch size, another place in a batch and another number
of threads. So every network call holds one sample (with guidance: its unconditional and its conditional half), unless
the Recipe is not exact, and the number of threads is a setting; on a CPU several samples are drawn at once.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from threading import Event
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.editing import image_to_image
from ldm_us.diffusion.guidance import Conditions
from ldm_us.diffusion.inpainting import composed, inpaint
from ldm_us.diffusion.inversion import edit_by_inversion
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Step, computing, conditions_of, decode, denoise, draw_start, finished
from ldm_us.synthesis.explain import attention_picture, control_picture, record, trajectory
from ldm_us.synthesis.inputs import edited_images, load_masks
from ldm_us.synthesis.prompt_weights import weigh_conditions
from ldm_us.synthesis.recipe import FromNoise, Inversion, Recipe, Region


class Wanted(NamedTuple):
    """What one sample has for itself."""

    prompt: str
    seed: int
    mask: Tensor | None  # (1, H, W) in {0, 1}


class Drawn(NamedTuple):
    """A sample, and pictures of how it came about."""

    x: Tensor  # (3, H, W) in [0, 1], on the CPU
    strips: dict[str, Image.Image]  # by their kind


def draw_samples(
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    recipe: Recipe,
    added: Sequence[ControlTerm] = (),
    strips: Sequence[str] = (),
    progress: tqdm | None = None,
) -> list[Drawn]:
    """Draw samples by a recipe with a resolved Sampling. Either all have a mask or none has.

    added: the further ControlNets of the recipe, with hints (1, 3, H, W). strips: "trajectory" and "explain", pictures
    of how a sample came about, which need one sample in a network call.
    """
    model, sampling = reading_as(of_edition(model, recipe.edition), recipe.long_prompts), recipe.sampling
    together = 1 if sampling.exact else len(wanted)
    parts, stopped = [wanted[first : first + together] for first in range(0, len(wanted), together)], Event()

    def draw(part: Sequence[Wanted]) -> list[Drawn]:
        return draw_part(model, part, recipe, added, strips, progress, stopped)

    # Samples drawn side by side, each with its own threads of the CPU: two at once on two cores take half the time.
    on_cpu = model.device.type == "cpu" and sampling.threads is not None and "explain" not in strips
    at_once = min(len(parts), torch.get_num_threads() // (sampling.threads or 1)) if on_cpu else 1
    if at_once <= 1:
        return [one for part in parts for one in draw(part)]
    with computing(model, sampling), ThreadPoolExecutor(at_once) as pool:  # the threads of MKL belong to the process
        futures = [pool.submit(draw, part) for part in parts]
        try:
            for future in as_completed(futures):
                future.result()  # raises the first error, of whichever sample
            return [one for future in futures for one in future.result()]
        except BaseException:  # Ctrl-C too: the others end with their step, else it would wait for whole samples
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def at_a_time(batch: int | None, recipe: Recipe, device: str) -> int:
    """How many samples to give draw_samples: --batch; unless told four, on a CPU at least one a core."""
    cores = torch.get_num_threads() // (recipe.sampling.threads or 1) if device == "cpu" else 1
    return max(4, cores) if batch is None else batch


@torch.no_grad()
def draw_part(
    model: LatentDiffusion,
    part: Sequence[Wanted],
    recipe: Recipe,
    added: Sequence[ControlTerm],
    strips: Sequence[str],
    progress: tqdm | None,
    stopped: Event,
) -> list[Drawn]:
    """Draw the samples of one network call after the other, unless they are not wanted any more."""
    steps = list[Step]()
    generators = generators_of([one.seed if recipe.edition > 1 else one.seed % 2**32 for one in part])
    with computing(model, recipe.sampling) as model:
        with record(model) if "explain" in strips else nullcontext() as seen:
            for step in walk(model, part, recipe, added, generators):
                if stopped.is_set():
                    raise CancelledError
                steps = [*steps, step] if "trajectory" in strips else [step]
                if progress is not None:
                    progress.update(len(step.z))
        images = pictured(model, steps[-1], recipe, generators)
        pictures = {"trajectory": trajectory(model, steps)} if "trajectory" in strips else {}
    if seen is not None:
        pictures["attention"] = attention_picture(seen, images[0], recipe.plain(part[0].prompt))
        pictures |= {"control": control_picture(seen)} if seen.control else {}
    return [Drawn(x, pictures) for x in images.float().cpu()]


def of_edition(model: LatentDiffusion, edition: int) -> LatentDiffusion:
    """The model with the timesteps that this edition of a Recipe samples at; the weights are the same ones."""
    if edition > 1:
        return model
    older = copy.copy(model)
    older.schedule = replace(model.schedule, whole_spacing=True)
    return older


def reading_as(model: LatentDiffusion, chunks: int | None) -> LatentDiffusion:
    """The model reading prompts in so many chunks, with the same weights; None: as it does."""
    if chunks is None:
        return model
    other = copy.copy(model)
    other.set_chunks(chunks)
    return other


def walk(
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    recipe: Recipe,
    added: Sequence[ControlTerm],
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """Go the way of a recipe to the latents of these samples: from noise, from an image, by region or by inversion."""
    sampling, begin = recipe.sampling, recipe.begin
    prompts, drawn = [recipe.plain(one.prompt) for one in wanted], [one.mask for one in wanted if one.mask is not None]
    masks = torch.stack(drawn) if drawn else None
    terms = [sampling.limited(replace(term, hint=term.hint.expand(len(wanted), -1, -1, -1))) for term in added]
    conditions = conditions_of(model, prompts, sampling, recipe.plain(recipe.negative_prompt), masks, terms)
    if recipe.prompt_weights:
        written = [one.prompt for one in wanted]
        conditions = weigh_conditions(conditions, written, recipe.negative_prompt, model.config.text)
    if isinstance(begin, FromNoise):
        z_T = draw_start(model, sampling, generators, prompts)
        yield from denoise(model, z_T, conditions, generators, sampling)
        return

    x = edited_images(recipe, len(wanted))
    if isinstance(begin, Region):
        region = load_masks(begin.inpaint, recipe, len(wanted))
        clean_level = model.schedule.final_alpha_bar if recipe.edition == 1 else 1.0
        yield from inpaint(model, x, region, conditions, generators, sampling, begin.resample, clean_level)
    elif isinstance(begin, Inversion):
        source = source_conditions(model, recipe, [one.prompt for one in wanted])
        yield from edit_by_inversion(model, x, source, conditions, sampling, begin.strength, begin.iterations)
    else:
        yield from image_to_image(model, x, conditions, generators, sampling, begin.strength)


def pictured(model: LatentDiffusion, last: Step, recipe: Recipe, generators: Sequence[torch.Generator]) -> Tensor:
    """The images (b, 3, H, W) in [0, 1] that the last Step of a walk stands for; pixels that are kept get no grain."""
    begin, batch = recipe.begin, len(last.z)
    if isinstance(begin, FromNoise):
        return finished(model, last.z, recipe.sampling, generators)
    if not isinstance(begin, Region):
        return decode(model, last.z)
    x, region = edited_images(recipe, batch), load_masks(begin.inpaint, recipe, batch)
    return composed(model, last.z, x, region, recipe.sampling, generators, begin.paste)


def source_conditions(model: LatentDiffusion, recipe: Recipe, prompts: Sequence[str]) -> Conditions:
    """What the image of an inversion shows, at guidance 1: by default what the samples are to show."""
    begin, sampling = recipe.begin, replace(recipe.sampling, guidance=1.0, guidance_rescale=0.0, guidance_interval=None)
    assert isinstance(begin, Inversion)
    shown = prompts if begin.source_prompt is None else [begin.source_prompt] * len(prompts)
    masks = (
        None
        if begin.source_mask is None
        else load_masks(begin.source_mask, recipe, len(prompts), model.config.control.hint)
    )
    conditions = conditions_of(model, [recipe.plain(prompt) for prompt in shown], sampling, masks=masks)
    return weigh_conditions(conditions, shown, "", model.config.text) if recipe.prompt_weights else conditions
