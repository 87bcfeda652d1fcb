"""How many altered copies of a dataset's images are found, by kind, and what is found besides.

    python bench/copies.py --data Dataset_BUSI_with_GT BUSBRA --n 80

Of n images, each kind of copy is planted once beside the originals; a pair of others that is found is counted too.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/copies.py")
    about = "How many altered copies of a dataset's images are found, by kind, and what is found besides. Of N "
    about += "images each kind of copy is planted once beside the originals. Prints; nothing is written."
    describe(parser, about, "--data Dataset_BUSI_with_GT BUSBRA --n 80")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="datasets")
    parser.add_argument("--n", type=int, default=80, metavar="N", help="copies of a kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the images chosen (%(default)s)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

import numpy as np
import torch
from PIL import Image, ImageOps

from ldm_us.data.decoded import small_image
from ldm_us.data.near_duplicates import copies
from ldm_us.data.opening import open_image
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.runtime.checks import check_words
from ldm_us.runtime.entry import run_command

KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "brighter by 1.3": lambda picture: picture.point(lambda v: min(255, round(1.3 * v))),
    "mirrored": ImageOps.mirror,
    "turned by 90": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda picture: picture.transpose(Image.Transpose.ROTATE_180),
    "turned by 3": lambda picture: picture.rotate(3, Image.Resampling.BICUBIC),
    "turned by 10": lambda picture: picture.rotate(10, Image.Resampling.BICUBIC),
    "turned by 15": lambda picture: picture.rotate(15, Image.Resampling.BICUBIC),
    "zoomed by 0.9": lambda picture: ImageOps.pad(ImageOps.scale(picture, 0.9), picture.size),
    "cropped by 6 % at every edge": lambda picture: crop(picture, 0.06, 0.06, 0.06, 0.06),
    "cropped by 10 % at every edge": lambda picture: crop(picture, 0.1, 0.1, 0.1, 0.1),
    "cropped by 15 % at every edge": lambda picture: crop(picture, 0.15, 0.15, 0.15, 0.15),
    "cropped by 6 % at two edges": lambda picture: crop(picture, 0.06, 0, 0, 0.06),
    "cropped by 10 % at two edges": lambda picture: crop(picture, 0.1, 0, 0, 0.1),
    "cropped by 6 % at the bottom": lambda picture: crop(picture, 0, 0, 0, 0.06),
    "cropped by 10 % at the bottom": lambda picture: crop(picture, 0, 0, 0, 0.1),
    "mirrored, turned by 3": lambda picture: ImageOps.mirror(picture).rotate(3, Image.Resampling.BICUBIC),
}


def crop(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Cut shares of the width and height off."""
    w, h = picture.size
    return picture.crop((round(w * left), round(h * top), round(w * (1 - right)), round(h * (1 - bottom))))


def compared(pictures: list[Image.Image]) -> set[tuple[int, int]]:
    """The pairs of copies among these pictures."""
    aspects = torch.tensor([picture.width / picture.height for picture in pictures])
    return copies(np.stack([small_image(picture) for picture in pictures]), aspects, [False] * len(pictures))


def main(argv: list[str] | None = None) -> int:
    """Compare the datasets as they are, then with each kind of copy."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    pictures = [open_image(record.image).convert("L") for record in read_datasets(options.data)]
    began = time.perf_counter()
    print(f"{len(pictures)} images: {len(compared(pictures))} pairs, {time.perf_counter() - began:.1f} s")
    chosen = np.random.default_rng(options.seed).choice(len(pictures), min(options.n, len(pictures)), replace=False)
    originals = [pictures[i] for i in chosen]
    known = compared(originals)
    for kind, alter in KINDS.items():
        found = compared([*originals, *(alter(picture) for picture in originals)])
        n = len(originals)
        own = sum((i, i + n) in found for i in range(n))
        families = {(i % n, j % n) for i, j in found if (min(i % n, j % n), max(i % n, j % n)) not in known} - {
            (i, i) for i in range(n)
        }
        print(f"{kind}: {own} of {n}, other pairs {len(families)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
