"""Command line of the evaluation: python -m ldm_us.evaluation reconstruction|masks ..."""

import argparse
import json
import statistics
import sys
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ldm_us.checkpoint import load_model, read_metadata
from ldm_us.checks import check_device, check_finite_options, check_seed
from ldm_us.data.records import Record, load_mask
from ldm_us.ddim import check_steps
from ldm_us.entry import run_command
from ldm_us.evaluation.mask_fidelity import mask_fidelity
from ldm_us.evaluation.reconstruction import reconstruction_psnr
from ldm_us.lineage import read_lineage
from ldm_us.training.dataset import data_hash, split_data


def build_parser() -> argparse.ArgumentParser:
    """Describe the subcommands; each sets `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_us.evaluation", description="Is what the model makes any good?"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reconstruction = commands.add_parser("reconstruction", help="PSNR of the autoencoder on held-out images")
    reconstruction.set_defaults(run=run_reconstruction)
    masks = commands.add_parser("masks", help="Dice between asked masks and the dark lesions of samples")
    masks.set_defaults(run=run_masks)
    masks.add_argument("--n", type=int, metavar="N", help="masks to sample (all held-out lesions)")
    masks.add_argument("--seed", type=int, default=0, metavar="N", help="of the first sample (%(default)s)")
    masks.add_argument("--steps", type=int, default=50, metavar="S", help="DDIM steps (%(default)s)")
    masks.add_argument("--guidance", type=float, default=7.5, metavar="S", help="(%(default)s)")
    masks.add_argument("--control-scale", type=float, default=1.0, metavar="X", help="(%(default)s)")
    masks.add_argument("--batch", type=int, default=8, metavar="N", help="images at a time (%(default)s)")
    for command in (reconstruction, masks):
        command.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a model.safetensors")
        command.add_argument(
            "--data", type=Path, nargs="+", required=True, metavar="DIR", help="what it was trained on"
        )
        command.add_argument("--device", default="cpu", help="(%(default)s)")
    return parser


def held_out_records(options: argparse.Namespace) -> list[Record]:
    """The images that no stage behind --weights was trained on: the split that the file's lineage names."""
    entries = read_lineage(read_metadata(options.weights)).entries
    shares = {entry.get("held_out") for entry in entries}
    if not entries:
        raise ValueError(f"{options.weights}: was not trained here, so it has no held-out images.")
    if len(shares) != 1:
        raise ValueError(f"{options.weights}: its stages held out different shares ({shares}) of the data.")
    share = shares.pop()
    if not share:
        raise ValueError(f"{options.weights}: was trained with --held-out 0, so there is nothing left to evaluate on.")
    train, held_out = split_data(options.data, share)
    if any(entry.get("data_sha256") != data_hash(train) for entry in entries):
        raise ValueError(
            f"{options.weights}: was trained on other images than --data gives now, so the held-out ones may be among "
            "them. Give the same, unchanged folders as in training."
        )
    return held_out


def run_reconstruction(options: argparse.Namespace) -> int:
    """Print the PSNR over the held-out images."""
    records = held_out_records(options)
    values = reconstruction_psnr(load_model(options.weights, device=options.device), records)
    print(json.dumps({"images": len(values), "psnr_db": summary(values)}, indent=2))
    return 0


def run_masks(options: argparse.Namespace) -> int:
    """Print the Dice of samples against true and shuffled masks, and of real images."""
    if options.n is not None and options.n < 2:
        raise ValueError(f"--n {options.n}: shuffling masks needs at least 2.")
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: use 1 or more.")
    check_seed(options.seed)
    check_finite_options(options, ("guidance", "control_scale"))
    model = load_model(options.weights, device=options.device)
    if model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it. Train one with `train.py controlnet`.")
    check_steps(model.schedule, options.steps)
    size = model.config.image_size
    records = [record for record in held_out_records(options) if bool(load_mask(record.masks, size).any())]
    records = records[:: max(1, len(records) // options.n)][: options.n] if options.n else records
    with tqdm(total=len(records) * options.steps, unit="step", desc="sampling") as bar:
        fidelity, _ = mask_fidelity(
            model,
            records,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
            control_scale=options.control_scale,
            batch=options.batch,
            on_step=lambda step: bar.update(len(step.z)),
        )
    columns = {"true": fidelity.true, "shuffled": fidelity.shuffled, "real": fidelity.real}
    print(
        json.dumps(
            {"masks": len(records), "dice": {name: by_class(d, records) for name, d in columns.items()}}, indent=2
        )
    )
    return 0


def by_class(values: Tensor, records: list[Record]) -> dict[str, dict[str, float]]:
    """Mean and spread over all records, and over each class."""
    groups = {"all": values.tolist()}
    for label in sorted({record.label for record in records}):
        groups[label] = [value for value, record in zip(values.tolist(), records, strict=True) if record.label == label]
    return {label: summary(group) for label, group in groups.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Mean, median and standard deviation, to three digits after the point."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    figures = {"mean": statistics.mean(values), "median": statistics.median(values), "std": spread}
    return {name: round(value, 3) for name, value in figures.items()}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand."""
    options = build_parser().parse_args(argv)
    check_device(options.device)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
