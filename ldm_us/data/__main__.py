"""Command line of the data tools: python -m ldm_us.data audit|phantom|masks|binarize|statistics."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm_us.data.audit.findings import audit_folder, audit_groups
from ldm_us.data.audit.statistics import record_statistics, summarize
from ldm_us.data.audit.summary import format_names
from ldm_us.data.audit.text import format_audit, format_groups
from ldm_us.data.masks.binarize import READINGS, binarize, find_masks
from ldm_us.data.masks.files import list_masks, parse_name, write_masks
from ldm_us.data.phantom.files import Plan, write_phantoms
from ldm_us.data.readers.datasets import KNOWN, read_dataset
from ldm_us.runtime.checks import check_seed
from ldm_us.runtime.command_line import short_usage
from ldm_us.runtime.entry import note, run_command


def build_parser() -> argparse.ArgumentParser:
    """Describe the subcommands; each sets `run`, a function of the parsed arguments that returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.data", description="Tools for the training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    audit = commands.add_parser(
        "audit",
        help="report what is in a dataset, what is wrong with it, and its near-duplicates",
        description=f"Open every file of a dataset and report what is in it. Known: {KNOWN}.",
        epilog="Exit code: 0 when all files can be used; 1 when some cannot (a file does not open, a mask has another "
        "size than its image); 2 when a DIR is not a dataset, or train.py would refuse to read it.",
    )
    audit.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="a dataset, or the folder that holds it")
    audit.add_argument(
        "--held-out", type=float, default=0.1, metavar="P", help="share of the split shown (%(default)s)"
    )
    audit.add_argument("--families", action="store_true", help="list every near-duplicate family")
    audit.set_defaults(run=run_audit)

    phantom = commands.add_parser(
        "phantom",
        help="make ultrasound-like images with exact masks, in BUSI's layout",
        description="Simulate breast ultrasound with exact lesion masks. Synthetic: not for diagnosis.",
    )
    add = phantom.add_argument
    add("--n", type=int, default=300, metavar="N", help="images, the three classes in turns (%(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the images (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other breasts (%(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes; changes no image (%(default)s)")
    add("--calipers", action="store_true", help="draw measuring marks across the lesions, and name them in captions")
    add("--text", action="store_true", help="write a side and a quadrant into the images, and say so in captions")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the data set")
    add("--overwrite", action="store_true", help="replace a folder that this command made before")
    phantom.set_defaults(run=run_phantom)

    add_masks(commands)
    add_binarize(commands)
    figures = commands.add_parser("statistics", help="grey levels, texture and lesion contrast of a dataset")
    figures.add_argument("folder", metavar="DIR", type=Path, help="as for audit")
    figures.set_defaults(run=run_statistics)
    return parser


def add_masks(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the subcommand masks."""
    masks = commands.add_parser(
        "masks",
        help="make new lesion masks like those of a dataset, for sample.py --mask",
        description="Fit outlines, sizes and places of the lesions of each class and draw new ones, or vary the masks.",
    )
    add = masks.add_argument
    add("--like", type=Path, required=True, metavar="DIR", help="a dataset with masks, or files named as in BUSI")
    add("--n", type=int, default=100, metavar="N", help="masks, the classes in turns (%(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the masks (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other masks (%(default)s)")
    add("--augment", action="store_true", help="shift, scale, rotate, mirror and bend the given masks instead")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the masks")
    masks.set_defaults(run=run_masks)


def add_binarize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the subcommand binarize."""
    binarized = commands.add_parser(
        "binarize",
        help="write black-and-white copies of masks whose levels mean something else",
        description="Say once which levels of masks are lesion, and how much of the pictures each reading covers.",
    )
    add = binarized.add_argument
    add("source", metavar="SRC", type=Path, help="a mask, or a folder of masks and the folders in it")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder for the copies, all of them PNG")
    add("--lesion", metavar="LEVELS", help=f"what is lesion: levels such as 85,200-255, or {', '.join(READINGS)}")
    add("--fill-outlines", action="store_true", help="fill what a closed outline surrounds")
    binarized.set_defaults(run=run_binarize)


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
    check_seed(args.seed)
    plan = Plan(args.n, args.size, args.seed, args.calipers, args.text)
    write_phantoms(plan, args.out, args.workers, args.overwrite)
    print(f"wrote {args.n} phantoms to {args.out}")
    return 0


def run_masks(args: argparse.Namespace) -> int:
    """Write new masks."""
    check_seed(args.seed)
    write_masks(args.like, args.n, args.out, seed=args.seed, size=args.size, augment=args.augment)
    masks, left = list_masks(args.like)
    if any(map(parse_name, masks)):  # else it is a dataset, with a reader of its own
        note_left_out(left)
    print(f"wrote {args.n} masks to {args.out}")
    return 0


def run_binarize(args: argparse.Namespace) -> int:
    """Write black-and-white copies, and print what they and the other readings would cover."""
    shares = binarize(args.source, args.out, args.lesion, args.fill_outlines)
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
    print(json.dumps(summarize(records, [record_statistics(record) for record in records]), indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    args = short_usage(build_parser()).parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
