"""Black-and-white copies of masks whose levels mean something else: classes, a shape in alpha, black on white.

A level is the brightest channel of a pixel; what is transparent is no lesion, unless alpha is constant.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from ldm_us.data.mask_rule import drawn_lesion
from ldm_us.data.masks.files import check_folder, list_masks
from ldm_us.data.opening import open_mask
from ldm_us.data.regions import Mask, fill_outlines
from ldm_us.files.atomic import atomic_folder
from ldm_us.files.pictures import save_png, to_picture

BY_ALPHA = {"alpha": "0-255", "transparent": "0-255"}
READINGS = {"above 127": "128-255", "nonzero": "1-255", "dark": "0-127"} | BY_ALPHA  # by name: their levels


def binarize(
    source: Path, out: Path, lesion: str | None = None, fill: bool = False, overwrite: bool = False
) -> dict[str, list[float]]:
    """Write copies of a mask or of a folder's to `out`; -> what share of each picture the copy and each reading cover.

    lesion: levels such as 85,200-255 or a name of READINGS; None where the masks are as they should be. Raise
    ValueError for a name that is taken, and where no copy has a lesion.
    """
    root = source if source.is_dir() else source.parent
    files, _ = find_masks(source)
    copies = {path.relative_to(root).with_suffix(".png"): path for path in files}
    check_folder(out, overwrite, lambda path: path.relative_to(out) in copies, source)
    if not files:
        raise ValueError(f"{source}: no picture in it. Give a mask, or a folder of masks.")
    if len(copies) < len(files):
        raise ValueError(f"{source}: two masks differ in their suffix alone, and both would be one PNG. Rename one.")
    shares = defaultdict[str, list[float]](list)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder:
        for copy, path in copies.items():
            mask = lesion_of(path, lesion)
            mask = fill_outlines(mask) if fill else mask
            (folder / copy).parent.mkdir(parents=True, exist_ok=True)
            save_png(to_picture(torch.from_numpy(mask)[None]), folder / copy)
            shares["written"].append(float(mask.mean()))
            for name in READINGS:
                shares[name].append(float(lesion_of(path, name).mean()))
        if not any(shares["written"]):
            raise ValueError(f"{source}: no pixel has a level of --lesion {lesion}. Choose among the levels it has.")
    return shares


def find_masks(source: Path) -> tuple[list[Path], list[Path]]:
    """List the masks in a folder and the folders in it, and what is left out; a file is a mask."""
    if not source.is_dir():
        return [source], []
    found = [list_masks(folder) for folder in (source, *sorted(source.rglob("*"))) if folder.is_dir()]
    return [path for masks, _ in found for path in masks], [path for _, left in found for path in left]


def lesion_of(path: Path, lesion: str | None) -> Mask:
    """The pixels (h, w) of a mask that have the levels `lesion`."""
    picture = open_mask(path)
    if lesion is None:
        return drawn_lesion(picture, path)
    ranges = [part.partition("-") for part in READINGS.get(lesion, lesion).split(",")]
    if not all(re.fullmatch(r"\d+", first) and re.fullmatch(r"\d*", last) for first, _, last in ranges):
        raise ValueError(f"--lesion {lesion}: give levels such as 85,200-255, or {', '.join(READINGS)}.")
    rgba = np.asarray(picture.convert("RGBA"))
    level, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
    shown = (2 * alpha.astype(int) > alpha.max()) | (alpha.min() == alpha.max())
    if lesion in BY_ALPHA:
        shown = (alpha > 0) == (lesion == "alpha")
    chosen = [(level >= int(first)) & (level <= int(last or first)) for first, _, last in ranges]
    return np.any(chosen, axis=0) & shown
