"""Sample ultrasound images by class, by prompt, or to follow masks; one by one, or as a dataset of thousands.

    python sample.py                                    # four samples of each class, from the bundled us128 model
    python sample.py --weights runs/controlnet/model.safetensors --class malignant --mask mask.png --n 4 --out samples
    torchrun --nproc-per-node 2 -- sample.py --mask masks --balance 2 1 1 --n 10000 --layout busi --out dataset
    python sample.py --verify samples/0000_benign_seed0.png     # or a folder with its manifest

Follow one sample: Plan -> Wanted (prompt, seed, mask) -> draw_images (ldm_us/synthesis/drawing.py) -> PNG with fields
and a line of the manifest. The same command again goes on where a killed one stopped.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.ddim import check_steps
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import check_size
from ldm_us.evaluation.memorisation.dropping import load_is_copy
from ldm_us.files.lineage import describe_model
from ldm_us.files.pictures import save_png, to_picture
from ldm_us.runtime.checks import check_seed
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.torchrun import local_device
from ldm_us.synthesis.added_controls import load_added, parse_added
from ldm_us.synthesis.copies import IsCopy, check_copies_options, copies_fields, without_copies
from ldm_us.synthesis.drawing import Settings, Wanted
from ldm_us.synthesis.edit_options import (
    check_edit_options,
    draws_no_noise,
    edit_fields,
    resizing_notes,
    walked_steps,
    wants_edit,
)
from ldm_us.synthesis.edits import Drawn, draw_samples, source_conditions
from ldm_us.synthesis.fields import SHOWS, Fields, as_text, origin_fields, subject_fields
from ldm_us.synthesis.folder import begin, check_command, done_numbers, finish, occupied, open_list, write_sample
from ldm_us.synthesis.grid import draw_grid, shown_subjects
from ldm_us.synthesis.masks import check_masks, load_original, mask_of
from ldm_us.synthesis.options import build_parser, check_options, check_seeds_matter, first_free, ignored_notes
from ldm_us.synthesis.plan import Plan, Sample, make_plan
from ldm_us.synthesis.processes import Crew, joined
from ldm_us.synthesis.verify import check_verify_options, verify
from ldm_us.synthesis.verify_folder import verify_folder
from ldm_us.synthesis.watermark import add_watermark, check_watermark_size, watermark_version
from ldm_us.synthesis.weights import Source, load_sampler


def main(argv: list[str] | None = None) -> int:
    """Parse, plan, load, sample, save."""
    options = build_parser().parse_args(argv)
    source = Source(options.weights, options.controlnet, options.lora)
    if options.info:
        print(describe_model(options.weights))
        return 0
    check_options(options)
    check_copies_options(options)
    options.device = local_device(options.device)
    if options.verify is not None:
        check_verify_options(options, vars(build_parser().parse_args([])))
        verify_any = verify_folder if options.verify.is_dir() else verify
        verdict = verify_any(options.verify, source, options.device, options)
        print(verdict.sentence)
        return 0 if verdict.equal else 1

    plan = plan_of(options)
    with joined() as crew:
        say = note if crew.main else lambda sentence: None
        model, weights_fields = load_sampler(source, options.device, say)
        settings = choose_settings(options, model, plan)
        added = checked_edits(options, model, settings, plan)
        fields = origin_fields(options.device) | weights_fields | asdict(settings)
        fields |= edit_fields(options) | copies_fields(options)
        is_copy = load_is_copy(options, model, settings)
        if options.watermark:
            check_watermark_size(settings.size)
            fields["watermark"] = watermark_version()
        checked = check_masks(plan, settings.size)
        for sentence in (*ignored_notes(options, settings), *resizing_notes(options, settings.size), *checked.notes):
            say(sentence)
        command = fields | describe_plan(options, plan, settings.size) | {"masks_sha256": checked.sha256}
        out = options.out or first_free(Path("samples"))
        crew.first(lambda: begin(out, command, options.overwrite))
        check_command(out, command)
        with occupied(out):
            draw = partial(draw_samples, options, model, settings=settings, added=added)
            steps = walked_steps(options, settings.steps)
            made = make_samples(draw, is_copy, plan, steps, fields, options.batch, out, crew)
            crew.barrier()
            if crew.main:
                finish(out, plan)
                about = as_text(fields | {SHOWS: "the first samples of a folder, beside their masks and originals"})
                save_png(draw_grid(plan, out, settings.size), out / "grid.png", about)
        if crew.main:
            print(f"{plan.total} images, manifest.jsonl and grid.png are in {out}; this process made {made} of them")
    return 0


def plan_of(options: argparse.Namespace) -> Plan:
    """Which samples the options ask for."""
    plan = make_plan(
        options.labels,
        options.prompt,
        options.mask,
        n=1 if options.n is None and options.balance is None and draws_no_noise(options) else options.n,
        seed=options.seed,
        balance=options.balance,
        layout=options.layout,
    )
    check_seed(plan.last_seed)
    check_seeds_matter(options, plan)
    return plan


def choose_settings(options: argparse.Namespace, model: LatentDiffusion, plan: Plan) -> Settings:
    """The options, with the model's own values where nothing was asked for. Raise ValueError where they do not fit."""
    config = model.config
    if plan.masked and model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it to follow --mask. Train one: `train.py controlnet`.")
    settings = Settings(
        size=config.image_size if options.size is None else options.size,
        guidance=config.guidance(plan.masked) if options.guidance is None else options.guidance,
        control_scale=config.control.scale if options.control_scale is None else options.control_scale,
        negative_prompt=options.negative_prompt,
        sampler=options.sampler,
        steps=options.steps,
        eta=options.eta,
        precision=options.precision,
        threads=options.threads,
        exact=not options.fast or wants_edit(options),
    )
    check_size(config, settings.size)
    check_steps(model.schedule, settings.steps)
    return settings


def checked_edits(
    options: argparse.Namespace, model: LatentDiffusion, settings: Settings, plan: Plan
) -> list[ControlTerm]:
    """Check the options that edit, before anything is written; -> further ControlNets."""
    check_edit_options(options, settings.size)
    for prompt in sorted({subject.prompt for subject in plan.subjects}):
        source_conditions(options, model, prompt, settings)
    return load_added(parse_added(options.also_control), model, options.device, settings.size)


def describe_plan(options: argparse.Namespace, plan: Plan, size: int) -> Fields:
    """What else decides which files there will be; every original that will be shown is read and checked."""
    for subject in shown_subjects(plan):
        load_original(subject, size)
    strips = [name for name in ("trajectory", "explain") if getattr(options, name)]
    return {
        "n": plan.n,
        "counts": None if plan.counts is None else list(plan.counts),
        "seed": plan.seed,
        "layout": plan.layout,
        "prompts": sorted({subject.prompt for subject in plan.subjects}),
        "subjects_sha256": hashlib.sha256("\n".join(s.name for s in plan.subjects).encode()).hexdigest(),
        "strips": strips or None,
    }


def make_samples(
    draw: Callable[..., list[Drawn]],
    is_copy: IsCopy | None,
    plan: Plan,
    steps: int,
    fields: Fields,
    batch: int,
    out: Path,
    crew: Crew,
) -> int:
    """Draw and write what is this process's share and not there yet, each in so many steps; -> how many that were."""
    done = done_numbers(out)
    left = (sample for sample in plan if crew.takes(sample.number) and sample.number not in done)
    total = sum(crew.takes(number) for number in range(plan.total)) - sum(map(crew.takes, done))
    progress = tqdm(total=total * steps, unit="step", desc="sampling", disable=not crew.main or total == 0)
    with progress as bar, open_list(out, crew.rank) as finished:
        for samples in batches(left, batch):
            masks = [mask_of(plan, sample, fields["size"]) for sample in samples]
            wanted = [Wanted(s.subject.prompt, s.seed, mask) for s, mask in zip(samples, masks, strict=True)]
            drawn, tried = without_copies(draw, is_copy, wanted, on_step=lambda step: bar.update(len(step.z)))
            for sample, mask, (x, strips), seeds in zip(samples, masks, drawn, tried, strict=True):
                picture = to_picture(x.mean(dim=0, keepdim=True))  # the three channels are one grey image
                picture = add_watermark(picture) if "watermark" in fields else picture
                own = subject_fields(sample.subject, seeds[-1], mask)
                own |= {"dropped_seeds": seeds[:-1]} if len(seeds) > 1 else {}
                write_sample(out, finished, sample, picture, mask, fields | own, strips)
    return total


def batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of `size` samples, the last one shorter."""
    while batch := list(islice(samples, size)):
        yield batch


def note(sentence: str) -> None:
    """Tell the user something that stops nothing."""
    print(f"note: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
