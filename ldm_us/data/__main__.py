"""Command line of the data tools: python -m ldm_us.data audit|phantom|masks|binarize|statistics."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import add_command, describe

AUDITED = """exit codes: 0 all files can be used
1 some cannot: a file does not open, a mask has another size than its image
2 a DIR is not a dataset, or train.py would refuse to read it"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the subcommands."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.data")
    describe(parser, "Tools for the training data. COMMAND --help describes each.", "phantom --out phantoms")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    audit = add_command(
        commands,
        "audit",
        "Report what is in a dataset, what is wrong with it, and its near-duplicates. Every file is opened, nothing is "
        "written. Known: BUSI (folders of classes), BUS-BRA, dataset B, BrEaST, BUS-UCLM, DDTI, TN3K, CAMUS, COCO, "
        "captions, DICOM, and images with dataset.json, metadata.jsonl or metadata.csv.",
        "Dataset_BUSI_with_GT BUSBRA --families",
        codes=AUDITED,
    )
    add = audit.add_argument
    add("folders", metavar="DIR", type=Path, nargs="+", help="a dataset, or the folder that holds it")
    add("--held-out", type=float, default=0.1, metavar="P", help="share of the split shown (%(default)s)")
    add("--families", action="store_true", help="list every near-duplicate family")

    phantom = add_command(
        commands,
        "phantom",
        "Make ultrasound-like images with exact masks, in BUSI's layout. They are simulated: not for diagnosis.",
        "--out phantoms",
        "--n 6000 --seed 1 --workers 2 --out phantoms --overwrite",
    )
    add = phantom.add_argument
    add("--n", type=int, default=300, metavar="N", help="images, the three classes in turns (%(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the images (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other breasts (%(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes; changes no image (%(default)s)")
    scanners = "fast, or must: SIMUS, a minute an image, goes on after a stop (%(default)s)"
    add("--scanner", choices=("fast", "must"), default="fast", help=scanners)
    add("--calipers", action="store_true", help="draw measuring marks across the lesions, and name them in captions")
    add("--text", action="store_true", help="write a side and a quadrant into the images, and say so in captions")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the data set")
    add("--overwrite", action="store_true", help="replace a folder that this command made before")

    add_mask_commands(commands)
    about = "Print grey levels, texture, lesion contrast and shape of a dataset as JSON. Nothing is written."
    figures = add_command(commands, "statistics", about, "phantoms")
    figures.add_argument("folder", metavar="DIR", type=Path, help="a dataset, or the folder that holds it")
    return short_usage(parser)


def add_mask_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe masks and binarize."""
    masks = add_command(
        commands,
        "masks",
        "Make new lesion masks like those of a dataset, for sample.py --mask. Outlines, sizes and places of each class "
        "are fitted and new ones drawn, or given masks are varied.",
        "--like phantoms --n 20 --out masks",
    )
    add = masks.add_argument
    add("--like", type=Path, required=True, metavar="DIR", help="a dataset with masks, or files named as in BUSI")
    add("--n", type=int, default=100, metavar="N", help="masks, the classes in turns (%(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the masks (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other masks (%(default)s)")
    add("--augment", action="store_true", help="shift, scale, rotate, mirror and bend the given masks instead")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the masks")
    add("--overwrite", action="store_true", help="replace a folder that holds nothing but such masks")

    binarized = add_command(
        commands,
        "binarize",
        "Write black-and-white copies of masks whose levels mean something else. You say which levels are lesion; "
        "printed is how much of the pictures each reading would cover.",
        "masks --lesion 85,200-255 --out black_and_white",
    )
    add = binarized.add_argument
    add("source", metavar="SRC", type=Path, help="a mask, or a folder of masks and the folders in it")
    readings = "levels such as 85,200-255, or above 127, nonzero, dark, alpha, transparent"
    add("--lesion", metavar="LEVELS", help=f"what is lesion: {readings}")
    add("--fill-outlines", action="store_true", help="fill what a closed outline surrounds")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the copies, all of them PNG")
    add("--overwrite", action="store_true", help="replace a folder that holds nothing but copies of these masks")


answer_at_once(__name__, build_parser)

from ldm_us.data.audit.findings import audit_folder, audit_groups
from ldm_us.data.audit.shapes import lesion_shapes
from ldm_us.data.audit.statistics import record_statistics, summarize
from ldm_us.data.audit.summary import format_names
from ldm_us.data.audit.text import format_audit, format_groups
from ldm_us.data.masks.binarize import binarize, find_masks
from ldm_us.data.masks.files import list_masks, parse_name, write_masks
from ldm_us.data.phantom.files import Plan, write_phantoms
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.runtime.checks import check_words
from ldm_us.runtime.entry import NOTHING_WRITTEN, note, run_command


def run_audit(args: argparse.Namespace) -> int:
    """Print the audit of each dataset, and of the groups of all."""
    audits = [audit_folder(folder) for folder in args.folders]
    groups = audit_groups(audits, args.held_out)
    for audit, of_folder in zip(audits, groups.of_folder, strict=True):
        print(format_audit(audit, of_folder, args.families), end="\n\n" if len(audits) > 1 else "\n")
    print(format_groups(audits, groups, args.held_out, args.families))
    return 0 if all(audit.usable for audit in audits) else 1


def run_phantom(args: argparse.Namespace) -> int:
    """Write a phantom data set."""
    plan = Plan(args.n, args.size, args.seed, args.calipers, args.text, args.scanner)
    write_phantoms(plan, args.out, args.workers, args.overwrite)
    print(f"wrote {args.n} phantoms to {args.out}")
    return 0


def run_masks(args: argparse.Namespace) -> int:
    """Write new masks."""
    numbers = {"seed": args.seed, "size": args.size}
    write_masks(args.like, args.n, args.out, **numbers, augment=args.augment, overwrite=args.overwrite)
    masks, left = list_masks(args.like)
    if any(map(parse_name, masks)):  # else it is a dataset, with a reader of its own
        note_left_out(left)
    print(f"wrote {args.n} masks to {args.out}")
    return 0


def run_binarize(args: argparse.Namespace) -> int:
    """Write black-and-white copies, and print what they and the other readings would cover."""
    shares = binarize(args.source, args.out, args.lesion, args.fill_outlines, args.overwrite)
    for name, of_masks in shares.items():
        least, median, largest = (f"{of(of_masks):.2%}" for of in (min, statistics.median, max))
        print(f"{name}: least {least}, median {median}, largest {largest} of the picture")
    note_left_out([path for path in find_masks(args.source)[1] if not path.is_dir()])
    print(f"wrote {len(shares['written'])} masks to {args.out}")
    return 0


def note_left_out(files: Sequence[Path]) -> None:
    """Tell the user which files of a folder were not read as masks."""
    if files:
        note(f"left out: {format_names([path.name for path in files])}.")


def run_statistics(args: argparse.Namespace) -> int:
    """Print the figures of a dataset."""
    records = read_dataset(args.folder)
    figures = summarize(records, [record_statistics(record) for record in records])
    print(json.dumps(figures | {"lesion_shapes": lesion_shapes(records)}, indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    args = build_parser().parse_args(argv)
    check_words(vars(args))
    making = {"phantom": run_phantom, "masks": run_masks, "binarize": run_binarize}
    return (making | {"audit": run_audit, "statistics": run_statistics})[args.command](args)


if __name__ == "__main__":
    sys.exit(run_command(main, NOTHING_WRITTEN))
