"""`python -m ldm_us.evaluation reader make|score`: a blinded sheet for experts, and what their answers say."""

import argparse
import json
import secrets
from pathlib import Path

from ldm_us.evaluation.reader.deck import NOT_HIDDEN, chain_of_sides, make_key, read_key, write_key
from ldm_us.evaluation.reader.score import read_answers, score
from ldm_us.evaluation.reader.sheet import sheet
from ldm_us.evaluation.sets.image_sets import LEAST_SIDE, check_sets, read_set
from ldm_us.files.atomic import write_text
from ldm_us.runtime.checks import check_extra, check_seed

SHEET, KEY = "sheet.html", "key.json"


def add_reader_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command line."""
    reader = commands.add_parser("reader", help="a blinded study: can experts tell generated images from real ones?")
    reader.set_defaults(device="cpu")
    parts = reader.add_subparsers(required=True, metavar="make|score")
    make = parts.add_parser("make", help="write the sheet for the readers, and its key")
    make.set_defaults(run=run_make)
    add = make.add_argument
    add("--real", type=Path, nargs="+", required=True, metavar="DIR", help="datasets; best what no stage has seen")
    add("--generated", type=Path, nargs="+", required=True, metavar="DIR", help="samples of sample.py")
    add("--n", type=int, default=60, metavar="N", help="images in all, half of them real (%(default)s)")
    add("--size", type=int, metavar="PIXELS", help="side of the images as shown (the smallest of all)")
    add("--ask-class", action="store_true", help="ask for the class of every image too")
    add("--seed", type=int, metavar="N", help="of choice and order: keep it from the readers (drawn, and in the key)")
    add("--out", type=Path, required=True, metavar="DIR", help=f"folder for {SHEET} and {KEY}")
    add("--overwrite", action="store_true", help="replace the files of an earlier study there")
    scoring = parts.add_parser("score", help="accuracy and AUC of every reader, with intervals, as JSON")
    scoring.set_defaults(run=run_score)
    scoring.add_argument("answers", type=Path, nargs="+", metavar="ANSWERS", help="files that readers sent back")
    scoring.add_argument("--key", type=Path, required=True, metavar="FILE", help=f"the {KEY} of the study")


def run_make(options: argparse.Namespace) -> int:
    """Choose, shuffle, write."""
    seed = secrets.randbelow(2**63) if options.seed is None else options.seed
    check_seed(seed)
    written = [options.out / name for name in (SHEET, KEY) if (options.out / name).exists()]
    if written and not options.overwrite:
        raise ValueError(f"{written[0]}: exists. Choose another --out, or add --overwrite.")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: exists and is not a folder. Choose another name.")
    real, generated = read_set(options.real), read_set(options.generated)
    check_sets(real, generated, LEAST_SIDE if options.size is None else options.size)
    sides = chain_of_sides(real, generated, options.size)
    key = make_key(real, generated, options.n, sides, seed, options.ask_class)
    page = sheet(key)
    options.out.mkdir(parents=True, exist_ok=True)
    write_key(key, options.out / KEY)
    write_text(options.out / SHEET, page)
    if key.families_shared:
        print(f"{key.families_shared} generated images left out: each is of a family with a real one.")
    print(
        f"study {key.study}: {len(key.cards)} images. {key.prepared} {NOT_HIDDEN}\n"
        f"Send {options.out / SHEET} to the readers, and keep {options.out / KEY}, which tells real from generated."
    )
    return 0


def run_score(options: argparse.Namespace) -> int:
    """Print the figures of all readers."""
    check_extra("eval", "sklearn", "scipy")
    key = read_key(options.key)
    print(json.dumps(score(key, [read_answers(path, key) for path in options.answers]), indent=2))
    return 0
