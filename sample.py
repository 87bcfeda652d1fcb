"""Sample ultrasound images by class, by prompt, or to follow masks; one by one, or as a dataset of thousands.

    python sample.py                                    # four samples of each class, from the bundled us128 model
    python sample.py --weights runs/controlnet/model.safetensors --class malignant --mask mask.png --n 4 --out samples
    torchrun --nproc-per-node 2 -- sample.py --mask masks --balance 2 1 1 --n 10000 --layout busi --out dataset
    python sample.py --verify samples/0000_benign_seed0.png     # or a folder with its manifest

Follow one sample: Plan -> Wanted (prompt, seed, mask) -> draw_samples (ldm_us/synthesis/drawing.py) -> denoise
(ldm_us/diffusion/sampling.py) -> PNG with fields and a line of the manifest. The same command again goes on where a
killed one stopped.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from ldm_us.runtime.command_line import answer_at_once
from ldm_us.synthesis.command_line import build_parser

answer_at_once(__name__, build_parser)  # before the imports that take seconds

from tqdm import tqdm

from ldm_us.data.records import mask_file
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.memorisation.dropping import TrainingImages, drop_copies, load_training_images
from ldm_us.files.pictures import save_png
from ldm_us.runtime.entry import note, run_command
from ldm_us.runtime.processes import World, joined
from ldm_us.synthesis.asked import grey_picture, plan_of, settle
from ldm_us.synthesis.drawing import Wanted, at_a_time, draw_samples
from ldm_us.synthesis.fields import SHOWS, Fields, as_text, subject_fields
from ldm_us.synthesis.folder import (
    begin,
    check_command,
    done_numbers,
    finish,
    occupied,
    open_list,
    write_sample,
)
from ldm_us.synthesis.grid import draw_grid, load_original, shown_subjects
from ldm_us.synthesis.info import describe_model
from ldm_us.synthesis.inputs import asked_mask
from ldm_us.synthesis.option_checks import first_free
from ldm_us.synthesis.options import SampleOptions, parse_options
from ldm_us.synthesis.plan import Plan, Sample
from ldm_us.synthesis.recipe import Recipe
from ldm_us.synthesis.verify import Means, verify, verify_folder
from ldm_us.synthesis.weights import load_sampler, taught_words


def main(argv: list[str] | None = None) -> int:
    """Parse, plan, load, sample, save."""
    options = parse_options(argv)
    if options.info:
        print(describe_model(options.source.weights))
        return 0
    if options.verify is not None:
        means = Means(options.source, options.device, options.given, options.mask)
        verdict = (verify_folder if options.verify.is_dir() else verify)(options.verify, means)
        print(verdict.sentence)
        return 0 if verdict.equal else 1

    words = taught_words(options.source)
    plan = plan_of(options, words)
    with joined() as world:
        say = note if world.main else lambda sentence: None
        model, weights_fields = load_sampler(options.source, options.device, say, options.recipe.sampling.precision)
        plan, recipe, added, fields, masks_sha256, notes = settle(options, plan, model, weights_fields, words)
        training = known_images(options, model, plan, recipe)
        command = fields | describe_plan(plan, recipe, options.strips) | {"masks_sha256": masks_sha256}
        for sentence in notes:
            say(sentence)
        out = options.out or first_free(Path("samples"))
        world.first(lambda: begin(out, command, options.overwrite))
        check_command(out, command)
        with occupied(out):
            change = f"with --out {out}{' and without --overwrite' * options.overwrite}"
            world.signals.then = f". The same command {change} goes on from there."
            made = sum(world.gathered(make_samples(model, plan, recipe, added, training, options, fields, out, world)))
            if world.main:
                finish(out, plan)
                about = as_text(fields | {SHOWS: "the first samples of a folder, beside their masks and originals"})
                save_png(draw_grid(plan, out, recipe), out / "grid.png", about)
        if world.main:
            before = f"; {plan.total - made} of them were there already" * (made < plan.total)
            print(f"{plan.total} images, manifest.jsonl and grid.png are in {out}, drawn on {options.device}{before}")
    return 0


def make_samples(
    model: LatentDiffusion,
    plan: Plan,
    recipe: Recipe,
    added: Sequence[ControlTerm],
    training: TrainingImages | None,
    options: SampleOptions,
    fields: Fields,
    out: Path,
    world: World,
) -> int:
    """For each batch that is this process's and not there yet: draw, drop copies, mark, write; -> how many samples."""
    strips, done = options.strips, done_numbers(out)
    left = (sample for sample in plan if world.takes(sample.number) and sample.number not in done)
    total = sum(world.takes(number) for number in range(plan.total)) - sum(map(world.takes, done))
    steps, quiet = total * recipe.walked_steps, not world.main or total == 0
    with tqdm(total=steps, unit="step", desc="sampling", disable=quiet) as bar, open_list(out, world.rank) as finished:
        for samples in batches(left, at_a_time(options.batch, recipe, options.device)):
            own_recipe = recipe.at(samples[0].subject.size)
            of_size = fields if own_recipe is recipe else fields | {"settings": own_recipe.to_dict()}
            masks = [asked_mask(one.subject, recipe) if plan.masked else None for one in samples]
            wanted = [Wanted(one.subject.prompt, one.seed, mask) for one, mask in zip(samples, masks, strict=True)]
            drawn = draw_samples(model, wanted, own_recipe, added, strips, bar)
            drawn, tried = drop_copies(drawn, wanted, training, model, own_recipe, added, strips)
            for sample, one, (x, pictures), seeds in zip(samples, wanted, drawn, tried, strict=True):
                picture = grey_picture(x, options.watermark)
                own = subject_fields(sample.subject, seeds[-1], one.mask)
                own |= {"dropped_seeds": seeds[:-1]} if len(seeds) > 1 else {}
                mask = None if one.mask is None else mask_file(one.mask, plan.hint)
                write_sample(out, finished, sample, picture, mask, of_size | own, pictures)
    return total


def batches(samples: Iterable[Sample], most: int) -> Iterator[list[Sample]]:
    """Samples in their order, at most so many at a time and of one size."""
    for _, of_size in groupby(samples, key=lambda sample: sample.subject.size):
        while some := list(islice(of_size, most)):
            yield some


def known_images(options: SampleOptions, model: LatentDiffusion, plan: Plan, recipe: Recipe) -> TrainingImages | None:
    """The training images that --drop-memorised compares with; None where it is not asked for."""
    if options.drop_memorised is None or options.data is None:
        return None
    if not all(isinstance(recipe.at(subject.size).sampling.size, int) for subject in plan.subjects):
        raise ValueError("--drop-memorised compares squares, as the report's thresholds are for: add --size PIXELS.")
    return load_training_images(options.drop_memorised, model, options.source.weights, options.data, recipe.sampling)


def describe_plan(plan: Plan, recipe: Recipe, strips: Sequence[str]) -> Fields:
    """What else decides which files there will be; every original that will be shown is read and checked."""
    for subject in shown_subjects(plan):
        load_original(subject, recipe)
    return {
        "n": plan.n,
        "counts": None if plan.counts is None else list(plan.counts),
        "seed": plan.seed,
        "layout": plan.layout,
        "prompts": sorted({subject.prompt for subject in plan.subjects}),
        "subjects_sha256": hashlib.sha256("\n".join(s.name for s in plan.subjects).encode()).hexdigest(),
        "strips": list(strips) or None,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
