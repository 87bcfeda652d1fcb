"""Command line of the evaluation: python -m ldm_us.evaluation COMMAND ..., where --help lists the commands."""

import argparse
import sys
from pathlib import Path

from ldm_us.evaluation.distribution.command import add_distribution_command
from ldm_us.evaluation.judge.command import run_train_judge
from ldm_us.evaluation.masks.command import add_mask_fidelity_command
from ldm_us.evaluation.measuring import run_classes, run_masks, run_reconstruction
from ldm_us.evaluation.memorisation.command import add_memorisation_command
from ldm_us.evaluation.protocol.command import add_protocol_command
from ldm_us.evaluation.reader.command import add_reader_command
from ldm_us.evaluation.realism.command import add_realism_command
from ldm_us.runtime.checks import check_device
from ldm_us.runtime.entry import run_command


def build_parser() -> argparse.ArgumentParser:
    """Describe the subcommands; each sets `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_us.evaluation", description="Is what the model makes any good?"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reconstruction = commands.add_parser("reconstruction", help="PSNR of the autoencoder on held-out images")
    reconstruction.set_defaults(run=run_reconstruction)
    masks = commands.add_parser("masks", help="sample by held-out masks, and compare with the lesions found")
    masks.set_defaults(run=run_masks)
    masks.add_argument("--n", type=int, metavar="N", help="masks to sample (all lesions)")
    masks.add_argument("--judge", type=Path, metavar="FILE", help="what finds lesions and names classes (a rule)")
    masks.add_argument("--save-grid", type=Path, metavar="PNG", help="picture of the worst, median and best")
    add_mask_fidelity_command(commands)
    classes = commands.add_parser("classes", help="how often samples of a class are of that class")
    classes.set_defaults(run=run_classes)
    classes.add_argument("--n", type=int, default=30, metavar="N", help="samples per class (%(default)s)")
    classes.add_argument("--judge", type=Path, required=True, metavar="FILE", help="what names the classes")
    classes.add_argument("--save-grid", type=Path, metavar="PNG", help="picture of the first samples of each class")
    add_reader_command(commands)
    add_memorisation_command(commands)
    add_judge_command(commands.add_parser("train-judge", help="train a judge of classes and lesions on real images"))
    add_distribution_command(commands)
    add_realism_command(commands)
    add_protocol_command(commands.add_parser("protocol", help="the paper's experiments, from one configuration file"))

    for command in (masks, classes):
        command.add_argument("--seed", type=int, default=0, metavar="N", help="of the first sample (%(default)s)")
        command.add_argument("--steps", type=int, default=50, metavar="S", help="DDIM steps (%(default)s)")
        command.add_argument("--guidance", type=float, metavar="S", help="(7.5 for sd15, 3 for us128, 1 with a mask)")
        command.add_argument("--batch", type=int, default=8, metavar="N", help="images at a time (%(default)s)")
    masks.add_argument("--control-scale", type=float, metavar="X", help="(1 for sd15, 2 for us128)")
    for command in (reconstruction, masks, classes):
        command.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a model.safetensors")
        command.add_argument("--device", default="cpu", help="(%(default)s)")
    for command in (reconstruction, masks):
        command.add_argument(
            "--data", type=Path, nargs="+", required=True, metavar="DIR", help="what it was trained on"
        )
        command.add_argument("--unseen", action="store_true", help="--data is new to it: measure on all images there")
    return parser


def add_judge_command(command: argparse.ArgumentParser) -> None:
    """Describe train-judge."""
    command.set_defaults(run=run_train_judge, device="cpu")
    add = command.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="BUSI folders")
    add("--out", type=Path, required=True, metavar="FILE", help="where to write the judge, a safetensors file")
    add("--steps", type=int, default=2000, metavar="N", help="(%(default)s)")
    add("--batch", type=int, default=16, metavar="N", help="images per step (%(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the images (%(default)s)")
    add("--held-out", type=float, default=0.1, metavar="P", help="share kept to measure the judge on (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    add("--overwrite", action="store_true", help="replace the file --out")


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand."""
    options = build_parser().parse_args(argv)
    check_device(options.device)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
