"""Samples of several folders below each other: the first of each class, a row for each folder.

    python bench/rows.py --rows "none=samples/none" "both=samples/both" --n 3 --out rows.png

A column has one number of each folder: where these were made by one command but for an option, it has one seed.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/rows.py")
    about = "Samples of several folders below each other: the first of each class, a row for each folder."
    describe(parser, about, "--rows 'no prior=samples/a' 'prior=samples/b' --out rows.png")
    add = parser.add_argument
    add("--rows", nargs="+", required=True, metavar="NAME=DIR", help="a label, and a folder of a dataset")
    add("--n", type=int, default=3, metavar="N", help="images of each class in a row (%(default)s)")
    add("--out", type=Path, required=True, metavar="FILE", help="the picture, a PNG")
    add("--overwrite", action="store_true", help="replace the file --out")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from itertools import groupby

from PIL import Image

from ldm_us.data.opening import open_image
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.data.records import Record
from ldm_us.files.pictures import labelled_grid, save_png
from ldm_us.runtime.checks import check_new_file, check_words
from ldm_us.runtime.entry import run_command


def main(argv: list[str] | None = None) -> int:
    """Read the folders, write the picture."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    check_new_file(options.out, options.overwrite)
    named = [row.partition("=")[::2] for row in options.rows]
    for name, folder in named:
        if not folder:
            raise ValueError(f"--rows {name}: names no folder. Write NAME=DIR.")
    rows = [first_of_classes(read_dataset(Path(folder)), options.n) for _, folder in named]
    columns = [label if i % options.n == 0 else "" for i, (label, _) in enumerate(rows[0])]
    save_png(
        labelled_grid([[picture for _, picture in row] for row in rows], [n for n, _ in named], columns), options.out
    )
    return 0


def first_of_classes(records: list[Record], n: int) -> list[tuple[str, Image.Image]]:
    """The first n images of each class, in the order of their numbers."""
    ordered = sorted(records, key=lambda record: (record.label, len(record.image.stem), record.image.stem))
    groups = groupby(ordered, key=lambda record: record.label)
    chosen = [record for _, members in groups for record in list(members)[:n]]
    return [(record.label, open_image(record.image).convert("L")) for record in chosen]


if __name__ == "__main__":
    sys.exit(run_command(main))
