"""The commands that measure a model: reconstruction, masks and classes. Each prints JSON."""

import argparse
import json
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ldm_us.data.readers.busi import CLASSES
from ldm_us.data.records import Record, class_prompt, load_mask
from ldm_us.diffusion.ddim import check_steps
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.figures import accuracy, confusion, summary
from ldm_us.evaluation.judge.file import load_judge
from ldm_us.evaluation.judge.network import judge
from ldm_us.evaluation.masks.fidelity import JUDGE, RULE, dark_lesions, mask_fidelity
from ldm_us.evaluation.masks.figures import Column, mask_figures
from ldm_us.evaluation.masks.picture import check_picture_path, chosen, save_mask_picture, shown
from ldm_us.evaluation.samples import SampleSettings, draw_samples
from ldm_us.evaluation.sets.evaluated_images import check_unseen_by_judge, held_out_records, unseen_records
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import labelled_grid, save_png, to_picture
from ldm_us.runtime.checks import check_finite_options, check_seed
from ldm_us.training.reconstruction import reconstruction_psnr

COLUMNS = 10  # of the grid


def run_reconstruction(options: argparse.Namespace) -> int:
    """Print the PSNR over the images that no stage has seen."""
    records = chosen_records(options)
    values = reconstruction_psnr(load_model(options.weights, device=options.device), records)
    print(json.dumps({"images": len(values), "psnr_db": summary(values)}, indent=2))
    return 0


def run_masks(options: argparse.Namespace) -> int:
    """Print the Dice of samples against true and shuffled masks, and of real images; with a judge also the classes."""
    if options.n is not None and options.n < 2:
        raise ValueError(f"--n {options.n}: shuffling masks needs at least 2.")
    check_picture_path(options.save_grid)
    settings = sample_settings(options, options.control_scale)
    network, training = (None, None) if options.judge is None else load_judge(options.judge)
    model = load_sampler(options)
    if model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it. Train one with `train.py controlnet`.")
    records = chosen_lesions(options, model.config.image_size)
    if training is not None:
        check_unseen_by_judge(options.judge, training, records)

    def find(images: Tensor) -> Tensor:
        return dark_lesions(images) if network is None else judge(network, images).masks

    with tqdm(total=len(records) * options.steps, unit="step", desc="sampling", delay=0.1) as bar:
        fidelity = mask_fidelity(model, records, settings, find, on_step=lambda step: bar.update(len(step.z)))
    labels = [record.label for record in records]
    errors = {"true": fidelity.true, "shuffled": fidelity.shuffled, "real": fidelity.real}
    columns = {name: Column(one, labels, [record.group for record in records]) for name, one in errors.items()}
    printed: dict[str, Any] = {
        "masks": len(records),
        "found_by": RULE if network is None else JUDGE,
        **mask_figures(columns, model.config.image_size**2),
    }
    if network is not None and training is not None:
        named, named_real = (judge(network, images).labels for images in (fidelity.samples, fidelity.real_images))
        printed["class"] = {"true": accuracy(labels, named), "real": accuracy(labels, named_real)}
        printed["confusion"] = confusion(labels, named)
        printed["judge_on_held_out_images"] = training.figures
    if options.save_grid is not None:
        rows = []
        for column, images in ((columns["true"], fidelity.samples), (columns["real"], fidelity.real_images)):
            index = chosen(column)
            rows.append(shown(column, index, images[index], fidelity.masks[index], find))
        save_mask_picture(rows[0], rows[1], options.save_grid, printed["found_by"])
    print(json.dumps(printed, indent=2))
    return 0


def run_classes(options: argparse.Namespace) -> int:
    """Print how often the judge names the class that a sample was asked for, and how often that of a real image."""
    if options.n < 1:
        raise ValueError(f"--n {options.n}: use 1 or more.")
    check_picture_path(options.save_grid)
    settings = sample_settings(options)
    network, training = load_judge(options.judge)
    model = load_sampler(options)
    asked = [label for label in CLASSES for _ in range(options.n)]
    check_seed(options.seed + len(asked))
    with tqdm(total=len(asked) * options.steps, unit="step", desc="sampling", delay=0.1) as bar:
        prompts = [class_prompt(label) for label in asked]
        samples = draw_samples(model, prompts, settings, on_step=lambda step: bar.update(len(step.z)))
    named = judge(network, samples).labels
    if options.save_grid is not None:
        save_grid(options, samples)
    printed = {
        "samples": len(asked),
        "accuracy": accuracy(asked, named),
        "confusion": confusion(asked, named),
        "judge_on_held_out_images": training.figures,
    }
    print(json.dumps(printed, indent=2))
    return 0


def chosen_records(options: argparse.Namespace) -> list[Record]:
    """Those held out of --data, or all of it with --unseen."""
    choose = unseen_records if options.unseen else held_out_records
    return choose(options.weights, options.data)


def chosen_lesions(options: argparse.Namespace, size: int) -> list[Record]:
    """Those with a lesion, --n of them spread over all."""
    records = chosen_records(options)
    lesions = [record for record in records if bool(load_mask(record.masks, size).any())]
    if not lesions:
        raise ValueError(f"--data: none of the {len(records)} images to measure on has a lesion mask. Give lesions.")
    n = min(options.n or len(lesions), len(lesions))
    return [lesions[i * len(lesions) // n] for i in range(n)]


def sample_settings(options: argparse.Namespace, control_scale: float | None = None) -> SampleSettings:
    """From the command line, checked before anything is loaded."""
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: use 1 or more.")
    check_seed(options.seed)
    check_finite_options(
        options, [name for name in ("guidance", "control_scale") if vars(options).get(name) is not None]
    )
    return SampleSettings(options.seed, options.steps, options.guidance, control_scale, options.batch)


def load_sampler(options: argparse.Namespace) -> LatentDiffusion:
    """The model of --weights, which must know --steps."""
    model = load_model(options.weights, device=options.device)
    check_steps(model.schedule, options.steps)
    return model


def save_grid(options: argparse.Namespace, samples: Tensor) -> None:
    """The first samples of each class, a row each, with what made them in the text fields."""
    rows = [[to_picture(x) for x in row[:COLUMNS]] for row in samples.split(options.n)]
    fields = {
        "synthetic": "made by a generative model, not for diagnosis",
        "weights_sha256": sha256_file(options.weights),
        "seed": str(options.seed),
        "steps": str(options.steps),
        "guidance": "the model's" if options.guidance is None else str(options.guidance),
    }
    save_png(labelled_grid(rows, CLASSES), options.save_grid, fields)
