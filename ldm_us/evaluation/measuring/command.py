"""The commands that measure a model: reconstruction, masks and classes. Each prints JSON; --out keeps it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_us.config import PICTURE
from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, load_framed, of_structure, trained_framing
from ldm_us.data.words import words_of
from ldm_us.diffusion.ddim import check_steps
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling
from ldm_us.evaluation.figures import accuracy, confusion, mean_and_spread
from ldm_us.evaluation.judge.file import Training, asked_classes, check_judged, load_judge, structure_of
from ldm_us.evaluation.judge.network import Judge, judge
from ldm_us.evaluation.masks.fidelity import JUDGE, RULE, dark_lesions, mask_fidelity
from ldm_us.evaluation.masks.figures import Column, mask_figures
from ldm_us.evaluation.masks.picture import check_picture_path, chosen, save_mask_picture, shown
from ldm_us.evaluation.measuring.reconstructed import write_reconstructions
from ldm_us.evaluation.results import check_out, keep
from ldm_us.evaluation.samples import draw_samples
from ldm_us.evaluation.sets.evaluated_images import check_unseen_by_judge, held_out_records, unseen_records
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.pictures import labelled_grid, save_png, to_picture
from ldm_us.runtime.checks import check_finite, check_seed
from ldm_us.synthesis.folder import MANIFEST
from ldm_us.training.reconstruction import reconstruction_psnr

COLUMNS = 10  # of the grid


def run_reconstruction(options: argparse.Namespace) -> int:
    """Print the PSNR over the images that no stage has seen, and write them as the autoencoder has them."""
    check_out(options.out, [f"{options.command}.json"], options.overwrite)
    check_out(options.images, [MANIFEST], options.overwrite)
    records = (unseen_records if options.unseen else held_out_records)(options.weights, options.data)
    model = load_model(options.weights, device=options.device)
    framing = trained_framing(read_metadata(options.weights), model.config)
    values = reconstruction_psnr(model, records, framing)
    if options.images is not None:
        try:
            write_reconstructions(model, records, options.images, framing, options.grain, options.seed)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted: {options.images} is not whole. Call the same again.") from stop
    return keep({"images": len(values), "psnr_db": mean_and_spread(values)}, options.out, "reconstruction.json")


def run_masks(options: argparse.Namespace) -> int:
    """Print the Dice of samples against true and shuffled masks, and of real images; with a judge also the classes."""
    if options.n is not None and options.n < 2:
        raise ValueError(f"--n {options.n}: shuffling masks needs at least 2.")
    sampling, model, network, training = prepare(options)
    if model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it. Train one with `train.py controlnet`.")
    records = (unseen_records if options.unseen else held_out_records)(options.weights, options.data)
    framing = trained_framing(read_metadata(options.weights), model.config)
    structure = structure_of(options.structure, options.judge, training)
    if model.config.control.hint == PICTURE:
        raise ValueError(f"{options.weights}: its ControlNet follows pictures, and what follows one shows no lesion.")
    records = with_lesions(records, options.n, framing, structure)
    if network is not None and training is not None:
        check_judged(network, [record.label for record in records], "--data")
        check_unseen_by_judge(options.judge, training, records)

    def find(images: Tensor) -> Tensor:
        return dark_lesions(images) if network is None else judge(network, images).masks

    fidelity = mask_fidelity(model, records, sampling, find, options.seed, options.batch, framing, structure)
    labels = [record.label for record in records]
    errors = {"true": fidelity.true, "shuffled": fidelity.shuffled, "real": fidelity.real}
    columns = {name: Column(one, labels, [record.group for record in records]) for name, one in errors.items()}
    printed: dict[str, Any] = {
        "masks": len(records),
        **({} if structure is None else {"structure": structure}),
        "found_by": RULE if network is None else JUDGE,
        **mask_figures(columns, model.config.image_size**2),
    }
    if network is not None and training is not None:
        named, named_real = (judge(network, images).labels for images in (fidelity.samples, fidelity.real_images))
        printed["class"] = {"true": accuracy(labels, named), "real": accuracy(labels, named_real)}
        printed["confusion"] = confusion(labels, named, network.classes)
        printed["judge_on_held_out_images"] = training.figures
    if options.save_grid is not None:
        rows = []
        for column, images in ((columns["true"], fidelity.samples), (columns["real"], fidelity.real_images)):
            index = chosen(column)
            rows.append(shown(column, index, images[index], fidelity.masks[index], find))
        save_mask_picture(rows[0], rows[1], options.save_grid, printed["found_by"])
    return keep(printed, options.out, "masks.json")


def run_classes(options: argparse.Namespace) -> int:
    """Print how often the judge names the class that a sample was asked for, and how often that of a real image."""
    sampling, model, network, training = prepare(options)
    assert network is not None
    assert training is not None
    asked, prompts = asked_classes(words_of(options.weights), network, options.n)
    check_seed(options.seed + len(asked))
    samples = draw_samples(model, prompts, sampling, options.seed, options.batch)
    named = judge(network, samples).labels
    if options.save_grid is not None:
        rows = dict(zip(dict.fromkeys(asked), samples.split(options.n), strict=True))
        save_grid(options.save_grid, rows, options.weights, options.seed, sampling)
    printed = {
        "samples": len(asked),
        "accuracy": accuracy(asked, named),
        "confusion": confusion(asked, named, network.classes),
        "judge_on_held_out_images": training.figures,
    }
    return keep(printed, options.out, "classes.json")


def prepare(options: argparse.Namespace) -> tuple[Sampling, LatentDiffusion, Judge | None, Training | None]:
    """Refuse what makes no sense before anything is loaded; then the model and the judge, where one is given."""
    check_picture_path(options.save_grid, options.overwrite)
    check_out(options.out, [f"{options.command}.json"], options.overwrite)
    scale, guidance = options.control_scale, options.guidance
    check_finite({"guidance": guidance, "control_scale": scale})
    sampling = Sampling(  # a whole batch in a network call, on all cores
        steps=options.steps, guidance=guidance, control_scale=scale, threads=None, exact=False
    )
    network, training = (None, None) if options.judge is None else load_judge(options.judge, options.device)
    model = load_model(options.weights, device=options.device)
    check_steps(model.schedule, options.steps)
    return sampling, model, network, training


def with_lesions(
    records: list[Record], most: int | None, framing: int | Framing, structure: str | None = None
) -> list[Record]:
    """Those with a lesion, or with this structure, at most so many, spread over all."""
    shown = [bool(load_framed(record, framing)[1].any()) for record in of_structure(records, structure)]
    lesions = [record for record, there in zip(records, shown, strict=True) if there]
    if not lesions:
        raise ValueError(f"--data: none of the {len(records)} images to measure on has a lesion mask. Give lesions.")
    n = min(most or len(lesions), len(lesions))
    return [lesions[i * len(lesions) // n] for i in range(n)]


def save_grid(path: Path, of_classes: Mapping[str, Tensor], weights: Path, seed: int, sampling: Sampling) -> None:
    """The first samples of each class, a row each, with what made them in the text fields."""
    rows = [[to_picture(x) for x in row[:COLUMNS]] for row in of_classes.values()]
    fields = {
        "synthetic": "made by a generative model, not for diagnosis",
        "weights_sha256": sha256_file(weights),
        "seed": str(seed),
        "steps": str(sampling.steps),
        "guidance": "the model's" if sampling.guidance is None else str(sampling.guidance),
    }
    save_png(labelled_grid(rows, tuple(of_classes)), path, fields)
