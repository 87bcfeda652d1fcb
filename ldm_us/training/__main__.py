"""Command line: python -m ldm_us.training prior|grain measures, on a dataset, what a model file lacks for sampling."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import add_command, describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.training")
    example = "--weights model.safetensors --data phantoms --out measured.safetensors"
    describe(parser, "Measure on a dataset what a model file lacks for sampling; train.py trains.", f"grain {example}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="prior|grain")
    about = {
        "prior": "The start prior: mean and covariance of blurred latents, which z_T still holds in training.",
        "grain": "The grain: speckle that the autoencoder loses.",
    }
    for name, text in about.items():
        command = add_command(commands, name, text, example)
        add = command.add_argument
        add("--weights", type=Path, required=True, metavar="FILE", help="a model.safetensors")
        add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="the datasets that it was trained on")
        add("--out", type=Path, required=True, metavar="FILE", help="the model with what was measured")
        add("--overwrite", action="store_true", help="replace the file --out")
        add("--device", default="auto", help="of the autoencoder: cpu, cuda, cuda:1 (a GPU where there is one)")
        if name == "prior":
            add("--rank", type=int, default=20, metavar="R", help="principal components kept (%(default)s)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

import torch

from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import framed, load_image, trained_framing
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.start_prior import estimate_priors
from ldm_us.files.checkpoint import (
    lazy_tensors,
    load_model,
    model_metadata,
    open_model_file,
    read_metadata,
    write_safetensors,
)
from ldm_us.runtime.checks import check_new_file, check_words
from ldm_us.runtime.entry import NOTHING_WRITTEN, run_command
from ldm_us.training.measured import IMAGES, encode_records, evenly, lost_grain, members


def main(argv: list[str] | None = None) -> int:
    """Read the model and the data, measure, and write the model with what was measured."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    check_new_file(options.out, options.overwrite)
    model = load_model(options.weights, device=options.device, parts=("vae",))
    if options.command == "prior" and model.schedule.ends_in_noise:
        raise ValueError(
            f"{options.weights}: its schedule ends in pure noise, so that z_T has no start prior to measure."
        )
    if options.command == "grain" and model.config.vae.noise_levels:
        raise ValueError(
            f"{options.weights}: its decoder draws texture of its own, so that no grain is to be measured."
        )
    records = read_datasets(options.data)
    framing = trained_framing(read_metadata(options.weights), model.config)
    if options.command == "prior":
        own = members([record.prompt for record in records], options.rank)
        model.set_prior(estimate_priors(encode_records(model, records, framing), options.rank, own))
    else:
        records = [records[i] for i in evenly(len(records), IMAGES)]
        frames = [framed(record.image, framing) for record in records]
        frame = Counter(frames).most_common(1)[0][0]
        records = [record for record, its in zip(records, frames, strict=True) if its == frame]
        x = torch.stack([load_image(record.image, frame)[:1] / 2 + 0.5 for record in records])
        model.set_grain(lost_grain(model, x))
    write_measured(model, options.weights, options.out)
    print(f"wrote {options.out}, with the {options.command} of {len(records)} images, on {options.device}")
    if options.command == "prior" and model.prior is not None:
        print(f"prompts with a prior of their own: {', '.join(model.prior.prompts) or 'none'}")
    return 0


def write_measured(model: LatentDiffusion, weights: Path, out: Path) -> None:
    """Write the file of `weights` again, every tensor as it is, with the model's prior and grain."""
    file = open_model_file(weights)
    metadata = {key: value for key, value in read_metadata(weights).items() if key not in ("format", "config")}
    kept = [name for name in file.keys() if not name.startswith(("prior.", "grain."))]  # noqa: SIM118
    tensors = {name: file.get_tensor(name) for name in kept}  # mapped from the file, not read
    measured = {name: value for name, value in model.state_dict().items() if name.startswith(("prior.", "grain."))}
    write_safetensors(out, lazy_tensors(tensors | measured), metadata | model_metadata(model.config))


if __name__ == "__main__":
    sys.exit(run_command(main, NOTHING_WRITTEN))
