"""A folder of masks -> a folder of new ones, named so that sample.py --mask reads their class from their names."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ldm_us.config import MASK
from ldm_us.data.masks.augment import Levels, augment_mask
from ldm_us.data.masks.sampler import draw_mask, fit_shapes
from ldm_us.data.opening import IMAGE_SUFFIXES
from ldm_us.data.phantom.files import check_numbers
from ldm_us.data.readers.busi import NAME
from ldm_us.data.readers.datasets import read_dataset
from ldm_us.data.records import followed, load_mask, mask_file
from ldm_us.data.structure import MaskFile
from ldm_us.files.atomic import atomic_folder
from ldm_us.files.pictures import save_png

FIT_SIZE = 256  # pixels along a side, at which outlines are measured


def write_masks(
    like: Path, n: int, out: Path, *, seed: int = 0, size: int = 128, augment: bool = False, overwrite: bool = False
) -> None:
    """Write n masks (size, size), the classes in turns: drawn from a fitted shape model, or varied from given masks.

    Raise ValueError where `like` holds no lesion masks, `out` is not to be replaced, or a number makes no sense.
    """
    check_numbers(n, size)
    check_folder(out, overwrite, lambda path: path.name.endswith("_mask.png"), like)
    given, hint = read_masks(like, size if augment else FIT_SIZE, augment)
    models = {} if augment else {label: fit_shapes(masks) for label, masks in given.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder:
        for i in range(n):
            label, nth = list(given)[i % len(given)], i // len(given)
            rng = np.random.default_rng([seed, i])  # of its own: the first masks are the same for every n
            masks = given[label]
            mask = augment_mask(rng, masks[nth % len(masks)]) if augment else draw_mask(rng, models[label], size)
            drawn = torch.from_numpy(mask.astype(np.uint8))[None]
            save_png(mask_file(drawn, hint), folder / f"{label} ({nth + 1})_mask.png")


def check_folder(out: Path, overwrite: bool, is_ours: Callable[[Path], bool], source: Path) -> None:
    """Refuse a folder that holds something, unless all of it is ours, is not read, and is to be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite or not out.is_dir():
        raise ValueError(f"--out {out}: exists and is not empty. Choose another folder, or --overwrite one of masks.")
    kept = [path for path in out.rglob("*") if not path.is_dir() and not is_ours(path)]
    if kept or source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--out {out}: holds {(kept or [source])[0]}, which is not to be deleted. Choose another one.")


def read_masks(folder: Path, size: int, apart: bool = False) -> tuple[dict[str, list[Levels]], tuple[str, ...]]:
    """Masks that are not empty by class, each resized to (size, size): of a dataset, or of files with BUSI's names.

    -> and what they show. apart: sums of 2^k where a dataset names several structures, which else are joined.
    """
    hint: tuple[str, ...] = MASK
    files: dict[str, dict[str, list[MaskFile]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = parse_name(path)
        if match is not None and match["mask"]:
            files.setdefault(match["label"], {}).setdefault(match["stem"], []).append(path)
    if not files:
        for record in read_dataset(folder):
            if record.masks and record.shows is not False:
                if record.organ.hint_is_picture:
                    raise ValueError(f"{folder}: what stands for masks there are pictures. Give a dataset with masks.")
                hint = record.organ.hint if apart else MASK
                files.setdefault(record.label, {})[str(record.image)] = list(followed(record, hint).masks)
    kind = bool if hint == MASK else np.uint8
    loaded = {
        label: [load_mask(paths, size)[0].numpy().astype(kind) for paths in of.values()]
        for label, of in sorted(files.items())
    }
    masks = {label: [mask for mask in of_class if mask.any()] for label, of_class in loaded.items()}
    found = {label: of_class for label, of_class in masks.items() if of_class}
    if not found:
        raise ValueError(f"{folder}: no mask with anything drawn in it.")
    return found, hint


def parse_name(path: Path) -> re.Match[str] | None:
    """Match a file name with BUSI's, in any format of pictures and in any case."""
    return NAME.fullmatch(path.name.lower())


def list_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the masks in a folder, and all that is left out: the images they were drawn on are not counted.

    Masks are the pictures with _mask in their names; where there is none, every picture is one.
    """
    inside = sorted(folder.iterdir())
    pictures = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    masks = [path for path in pictures if "_mask" in path.stem.lower()] or pictures
    drawn_on = {path.stem.lower().partition("_mask")[0] for path in masks}
    known = {*masks, *(path for path in pictures if path.stem.lower() in drawn_on)}
    return masks, [path for path in inside if path not in known]
