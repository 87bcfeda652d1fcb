"""Command line of the evaluation: python -m ldm_us.evaluation COMMAND ..., where --help lists the commands."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import add_command, describe

JUDGE = "ldm_us/weights/judge.safetensors"  # as it lies in a checkout
SETS: dict[str, Any] = {"type": Path, "nargs": "+", "required": True, "metavar": "DIR"}
FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
NUMBER: dict[str, Any] = {"type": int, "metavar": "N"}
WORDS: dict[str, dict[str, Any]] = {  # that mean the same in several commands
    "--weights": FILE | {"required": True, "help": "a model.safetensors"},
    "--data": SETS | {"help": "the datasets that it was trained on"},
    "--real": SETS | {"help": "datasets; best what no stage, and no judge, has seen"},
    "--generated": SETS | {"help": "folders of sample.py, or datasets"},
    "--judge": FILE | {"help": "what finds lesions and names classes (a rule finds lesions)"},
    "--structure": {"metavar": "NAME", "help": "which of those that masks show (that of the judge, or all as one)"},
    "--size": {"type": int, "metavar": "PIXELS", "help": "side that images are resized to (their own, or the model's)"},
    "--batch": NUMBER | {"default": 8, "help": "images at a time (%(default)s)"},
    "--steps": NUMBER | {"default": 50, "metavar": "S", "help": "DDIM steps (%(default)s)"},
    "--guidance": {"type": float, "metavar": "S", "help": "(7.5 for sd15, 3 for us128, 1 with a mask)"},
    "--save-grid": {"type": Path, "metavar": "PNG", "help": "a picture too: the worst, median and best"},
    "--seed": NUMBER | {"default": 0, "help": "of what is drawn; of samples, the first one's (%(default)s)"},
    "--device": {"default": "auto", "help": "of the networks: cpu, cuda, cuda:1 (a GPU where there is one)"},
    "--overwrite": {"action": "store_true", "help": "replace the files of an earlier call"},
}


def add_words(command: argparse.ArgumentParser, *words: str, out: str = "") -> None:
    """Add options that several commands have; `out`: the files that --out gets of a command that prints anyway."""
    for word in words:
        command.add_argument(word, **WORDS[word])
    if out:
        command.add_argument("--out", type=Path, metavar="DIR", help=f"write {out} there")
        command.add_argument("--overwrite", **WORDS["--overwrite"])


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.evaluation")
    about = "Is what the model makes any good? COMMAND --help describes each. --seed is of what is drawn; splits and "
    about += "intervals have fixed seeds, so that figures can be compared."
    describe(parser, about, f"classes --weights model.safetensors --judge {JUDGE}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_measuring(commands)
    add_comparing(commands)
    add_reader(commands)
    add_training(commands)
    return short_usage(parser)


def add_measuring(commands: Any) -> None:
    """Describe what measures a model."""
    measured = "--weights model.safetensors --data phantoms"
    reconstruction = add_command(commands, "reconstruction", "PSNR of the autoencoder on held-out images.", measured)
    about = "Sample by held-out masks, and compare with the lesions found."
    masks = add_command(commands, "masks", about, f"{measured} --n 20")
    for command in (reconstruction, masks):
        add_words(command, "--weights", "--data")
        command.add_argument("--unseen", action="store_true", help="--data is new to it: measure on all images there")
    add = reconstruction.add_argument
    add("--images", type=Path, metavar="DIR", help="write them there, as a folder of samples")
    add("--no-grain", dest="grain", action="store_false", help="of --images: as the decoder gives them, without grain")
    add_words(reconstruction, "--seed", "--device", out="reconstruction.json")

    add = masks.add_argument
    add("--n", type=int, metavar="N", help="masks to sample (all lesions)")
    add("--control-scale", type=float, metavar="X", help="(1 for sd15, 2 for us128)")
    sampling = ("--seed", "--steps", "--guidance", "--batch", "--device")
    add_words(masks, "--judge", "--structure", "--save-grid", *sampling, out="masks.json")

    about = "How often samples of a class are of that class."
    classes = add_command(commands, "classes", about, f"--weights model.safetensors --judge {JUDGE}")
    add_words(classes, "--weights")
    add = classes.add_argument
    add("--judge", **FILE, required=True, help="what names the classes")
    add("--n", type=int, default=30, metavar="N", help="samples of each class (%(default)s)")
    add("--save-grid", type=Path, metavar="PNG", help="a picture too: the first of each class")
    add_words(classes, *sampling, out="classes.json")
    classes.set_defaults(control_scale=None)


def add_comparing(commands: Any) -> None:
    """Describe what compares samples with real images."""
    sets = "--real phantoms --generated samples"
    about = "The same as masks of samples in folders, with their masks beside them, as --layout busi lays them."
    command = add_command(commands, "mask-fidelity", about, f"{sets} --judge {JUDGE}")
    words = ("--real", "--generated", "--judge", "--structure", "--batch", "--device")
    add_words(command, *words, "--save-grid", out="mask-fidelity.json")
    command.set_defaults(batch=32)

    about = "Which samples are copies of training images. Copies are planted too, to say how many would be found."
    example = "--weights model.safetensors --data phantoms --generated samples --out copies"
    command = add_command(commands, "memorisation", about, example)
    add = command.add_argument
    add("--planted", type=int, default=100, metavar="N", help="copies of each kind to look for (%(default)s)")
    add("--false-alarms", type=float, default=0.03, metavar="P", help="expected share of them (%(default)s)")
    words = ("--weights", "--data", "--generated", "--size", "--seed", "--device")
    add_words(command, *words, out="memorisation.json, samples.csv, closest.png")

    about = "Of each model that train.py --keep-every kept: validation loss, and how many samples are copies."
    command = add_command(commands, "kept", about, "runs/unet --data phantoms")
    command.add_argument("run", type=Path, metavar="RUN", help="a run with models in RUN/kept")
    command.add_argument("--n", type=int, default=64, metavar="N", help="samples of each model (%(default)s)")
    add_words(command, "--data", "--seed", "--steps", "--guidance", "--batch", "--device", out="kept.json")
    command.set_defaults(steps=25)

    about = "FID, KID, precision, recall, density, coverage, diversity, and the same between halves of the real images."
    command = add_command(commands, "distribution", about, f"{sets} --features {JUDGE}")
    add = command.add_argument
    about = "vae, with --weights; or a file: a judge, a classifier, weights of a timm network"
    add("--features", required=True, metavar="vae|FILE", help=about)
    add("--weights", **FILE, help="--features vae: a model.safetensors")
    add("--network", metavar="NAME", help="timm's name for the weights of --features, such as resnet50")
    words = ("--real", "--generated", "--size", "--seed", "--batch", "--device")
    add_words(command, *words, out="distribution.json")
    command.set_defaults(batch=32)

    about = "Speckle, depth and lesions of samples against those of real images."
    command = add_command(commands, "realism", about, f"{sets} --out realism")
    other = command.add_mutually_exclusive_group(required=True)
    other.add_argument("--generated", type=Path, nargs="+", metavar="DIR", help=WORDS["--generated"]["help"])
    other.add_argument("--reconstructions", **FILE, help="instead: what this model's VAE makes of --real, on --device")
    add = command.add_argument
    add("--dynamic-range", type=float, default=60.0, metavar="DB", help="of the display (%(default)s)")
    add("--no-two-sample", dest="two_sample", action="store_false", help="train no network to tell the sets apart")
    add("--two-sample-steps", type=int, default=800, metavar="N", help="of its training, on the CPU (%(default)s)")
    add_words(command, "--real", "--size", "--seed", "--device", out="realism.json, realism.md, realism.png")


def add_reader(commands: Any) -> None:
    """Describe reader make, reader stand-in and reader score."""
    about = "A blinded study: can experts tell generated images from real ones?"
    example = "--real phantoms --generated samples --out study"
    reader = add_command(commands, "reader", about, f"make {example}")
    parts = reader.add_subparsers(dest="command", required=True, metavar="make|stand-in|score")
    make = add_command(parts, "make", "Write the sheet for the readers, and its key.", example)
    add_words(make, "--real", "--generated", "--size")
    add = make.add_argument
    add("--n", type=int, default=60, metavar="N", help="images in all, half of them real (%(default)s)")
    add("--ask-class", action="store_true", help="ask for the class of every image too")
    add("--seed", type=int, metavar="N", help="of choice and order: keep it from the readers (drawn, and in the key)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for sheet.html and key.json")
    add("--overwrite", action="store_true", help="replace the files of an earlier study there")
    about = "Answers of rules and of a network, no human, which try the whole of a study."
    stand_in = add_command(parts, "stand-in", about, f"--key study/key.json {example.replace('study', 'answers')}")
    add_words(stand_in, "--real", "--generated", "--seed", "--overwrite")
    stand_in.add_argument("--key", **FILE, required=True, help="the key.json of the study")
    stand_in.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files of answers")
    about = "Accuracy and AUC of every reader, with intervals, as JSON."
    score = add_command(parts, "score", about, "answers_1.json answers_2.json --key study/key.json")
    score.add_argument("answers", type=Path, nargs="+", metavar="ANSWERS", help="files that readers sent back")
    score.add_argument("--key", **FILE, required=True, help="the key.json of the study")
    add_words(score, out="scores.json")


def add_training(commands: Any) -> None:
    """Describe what trains a judge, or whole experiments."""
    about = "Train a judge of classes and lesions on real images."
    command = add_command(commands, "train-judge", about, "--data phantoms --out judge.safetensors")
    add = command.add_argument
    add("--data", **SETS, help="datasets with classes and masks")
    add("--steps", type=int, default=2000, metavar="N", help="of its training (%(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the images (%(default)s)")
    add("--held-out", type=float, default=0.1, metavar="P", help="share kept to measure the judge on (%(default)s)")
    add("--structure", metavar="NAME", help="to find, of several that the masks show (all as one)")
    add("--out", **FILE, required=True, help="the .safetensors file to write")
    add_words(command, "--batch", "--seed", "--device", "--overwrite")
    command.set_defaults(batch=16)
    about = "The paper's experiments, from one configuration file, which names seeds and device too. The same command "
    about += "goes on where it was stopped, and does nothing twice."
    command = add_command(commands, "protocol", about, "docs/protocol_us128.json --out runs/protocol")
    add = command.add_argument
    add("config", type=Path, metavar="CONFIG.json", help="such as docs/protocol_us128.json")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for all; resumed where it was begun")
    add("--until", metavar="STAGE", help="stop after unet, controlnet, generated, ... (the end)")


answer_at_once(__name__, build_parser)

from ldm_us.evaluation.distribution.command import run_distribution
from ldm_us.evaluation.judge.command import run_train_judge
from ldm_us.evaluation.masks.command import run_mask_fidelity
from ldm_us.evaluation.measuring.command import run_classes, run_masks, run_reconstruction
from ldm_us.evaluation.memorisation.command import run_memorisation
from ldm_us.evaluation.memorisation.kept_command import run_kept
from ldm_us.evaluation.protocol.command import run_protocol_command
from ldm_us.evaluation.reader.command import run_make, run_score, run_stand_in
from ldm_us.evaluation.realism.command import run_realism
from ldm_us.runtime.checks import check_words
from ldm_us.runtime.entry import NOTHING_WRITTEN, run_command

RUN = {
    "reconstruction": run_reconstruction,
    "masks": run_masks,
    "classes": run_classes,
    "mask-fidelity": run_mask_fidelity,
    "make": run_make,
    "stand-in": run_stand_in,
    "score": run_score,
    "memorisation": run_memorisation,
    "kept": run_kept,
    "train-judge": run_train_judge,
    "distribution": run_distribution,
    "realism": run_realism,
    "protocol": run_protocol_command,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command."""
    options = build_parser().parse_args(argv)
    chosen = vars(options).get("device") == "auto"
    check_words(vars(options))
    code = RUN[options.command](options)
    if chosen:
        print(f"measured on {options.device}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run_command(main, NOTHING_WRITTEN))
