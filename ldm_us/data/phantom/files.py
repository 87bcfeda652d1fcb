"""Write phantoms as a data set in BUSI's layout, with the oddities of BUSI's files.

Classes take turns: phantom i is normal, benign or malignant. BUSI's files are RGB though grey, some with coloured
marks; masks are 1-bit, a few RGBA, and those of normal images RGB and all zero; an image with several lesions has
`_mask_1.png`, `_mask_2.png`; and near-duplicates abound. All of that is here, at fixed numbers within each class.
Where marks are drawn, the captions of `metadata.jsonl` name them: a prompt steers away only from what has a name.

The fast scanner takes a fraction of a second for an image, the physics-based one half a minute. What the second made is
therefore kept in OUT.unfinished when it is stopped, and the same command goes on there.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import ldm_us
from ldm_us.data.phantom import bmode, must
from ldm_us.data.phantom.simulate import Phantom, simulate
from ldm_us.data.readers.busi import PHANTOM_INFO, read_busi
from ldm_us.data.readers.imagefolder import JSONL
from ldm_us.data.structure import file_of
from ldm_us.files.atomic import atomic_file, atomic_folder, write_text
from ldm_us.files.pictures import labelled_grid
from ldm_us.runtime.checks import check_extra
from ldm_us.runtime.entry import note

CLASSES = ("normal", "benign", "malignant")
SIZES = (16, 2048)  # pixels
OVERVIEW = "overview.png"
INK = (230, 230, 230)  # of what sonographers leave in the picture
SIDES, QUADRANTS = ("LT", "RT"), ("UOQ", "LOQ", "UIQ", "LIQ")
SCANNERS = {"fast": bmode.scan, "must": must.scan}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Plan:
    """What the phantom command makes. `n` images: the first of them are the same for every n."""

    n: int
    size: int
    seed: int
    calipers: bool = False
    text: bool = False
    scanner: str = "fast"  # one of SCANNERS


def write_phantoms(plan: Plan, out: Path, workers: int = 1, overwrite: bool = False) -> None:
    """Make the data set in a folder beside `out`, then move it there. Raise ValueError where that cannot be."""
    out = out.resolve()
    check_numbers(plan.n, plan.size, workers)
    check_out(out, overwrite)
    unfinished = None
    if plan.scanner == "must":
        check_extra("simulation", "pymust")
        unfinished = out.with_name(f"{out.name}.unfinished")
        check_unfinished(plan, unfinished)
    with stop_says(unfinished), atomic_folder(out, unfinished) as folder:
        write_text(folder / PHANTOM_INFO, json.dumps(describe(plan), indent=1) + "\n")
        for label in CLASSES[: plan.n]:
            (folder / label).mkdir(exist_ok=True)
        jobs = [plan] * plan.n, range(plan.n), [folder] * plan.n
        chunk = 8 if unfinished is None else 1
        with process_pool(workers) if workers > 1 else nullcontext() as pool:
            done = map(write_phantom, *jobs) if pool is None else pool.map(write_phantom, *jobs, chunksize=chunk)
            for _ in tqdm(done, total=plan.n, unit="image", desc="phantoms"):
                pass
        overview(folder).save(folder / OVERVIEW)
        if plan.calipers or plan.text:
            (folder / JSONL).write_text("".join(json.dumps(line) + "\n" for line in captions(plan, folder)))


@contextmanager
def stop_says(unfinished: Path | None) -> Iterator[None]:
    """Let Ctrl-C say where the images are that were done, where they are kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if unfinished is not None:
            stop.args = (f"interrupted: what is done is in {unfinished}; the same command goes on there",)
        raise


def describe(plan: Plan) -> dict[str, object]:
    """How a data set was made, as its file says it."""
    return {"software": f"ldm_us {ldm_us.__version__}", **asdict(plan), "families": families(plan.n)}


def check_unfinished(plan: Plan, unfinished: Path) -> None:
    """Refuse to go on with what another plan began, and say so where a set is gone on with."""
    if not unfinished.exists():
        return
    try:
        begun = json.loads((unfinished / PHANTOM_INFO).read_text())
    except (OSError, ValueError):
        begun = None
    if begun != describe(plan):
        raise ValueError(f"{unfinished}: was begun with other options. Give those, or delete it to begin anew.")
    there = sum(not path.stem.startswith(".") and "_mask" not in path.stem for path in unfinished.glob("*/*.png"))
    note(f"going on in {unfinished}: {there} of {plan.n} images are there.")


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each. They are spawned, because a fork keeps the threads that NumPy started with."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_numbers(n: int, size: int, workers: int = 1) -> None:
    """Refuse numbers that make no sense."""
    if n < 1:
        raise ValueError(f"--n {n}: use 1 or more.")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"--size {size}: use {SIZES[0]} to {SIZES[1]} pixels.")
    if workers < 1:
        raise ValueError(f"--workers {workers}: use 1 or more.")


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an older phantom folder, and that only when asked to."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        out.parent.mkdir(parents=True, exist_ok=True)
    elif not overwrite:
        raise ValueError(f"--out {out}: exists and is not empty. Choose another folder, or add --overwrite.")
    elif not (out / PHANTOM_INFO).is_file():
        raise ValueError(f"--out {out}: holds no {PHANTOM_INFO}, so it was not made here. Choose another folder.")
    elif others := sorted({path.name for path in out.iterdir()} - {*CLASSES, PHANTOM_INFO, OVERVIEW, JSONL}):
        raise ValueError(f"--out {out}: holds {', '.join(others[:3])} besides phantoms. Move that, or choose another.")
    elif Path.cwd().is_relative_to(out):
        raise ValueError(f"--out {out}: cannot replace the folder that you are in. Leave it first.")


def write_phantom(plan: Plan, i: int, folder: Path) -> None:
    """Write phantom i of a plan: its masks, then its image, unless that is there from an attempt before."""
    label, nth = CLASSES[i % len(CLASSES)], i // len(CLASSES) + 1
    stem = folder / label / f"{label} ({nth})"
    image = Path(f"{stem}.png")
    if image.exists():
        return
    phantom = phantom_of(plan, label, nth)
    picture = Image.fromarray(phantom.image).convert("RGB")
    if plan.calipers and phantom.masks:
        draw_calipers(picture, phantom.masks[0])
    if plan.text:
        draw_text(picture, nth)
    if nth % 40 == 5:
        mark = max(2, plan.size // 40)
        picture.paste((255, 200, 0), (mark, mark, 3 * mark, 3 * mark))
    if not phantom.masks:
        Image.new("RGB", picture.size).save(f"{stem}_mask.png")
    for k, mask in enumerate(phantom.masks):
        mask_picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGBA" if nth % 50 == 3 else "1")
        mask_picture.save(f"{stem}_mask{f'_{k}' if k else ''}.png")
    with open(image, "wb") if plan.scanner == "fast" else atomic_file(image) as file:
        picture.save(file, "PNG")


def draw_calipers(picture: Image.Image, mask: NDArray[np.bool_]) -> None:
    """Crosses at the ends of the widest row and the tallest column of a lesion, dotted lines between them."""
    if not mask.any():
        return
    row, column = int(mask.sum(axis=1).argmax()), int(mask.sum(axis=0).argmax())
    across, down = mask[row].nonzero()[0].tolist(), mask[:, column].nonzero()[0].tolist()
    draw = ImageDraw.Draw(picture)
    arm, gap = max(1, picture.width // 64), max(3, picture.width // 40)
    for x0, y0, x1, y1 in ((across[0], row, across[-1], row), (column, down[0], column, down[-1])):
        for x, y in ((x0, y0), (x1, y1)):
            draw.line((x - arm, y, x + arm, y), INK)
            draw.line((x, y - arm, x, y + arm), INK)
        dots = max(1, (x1 - x0 + y1 - y0) // gap)
        for k in range(1, dots):
            draw.point((x0 + (x1 - x0) * k // dots, y0 + (y1 - y0) * k // dots), INK)


def draw_text(picture: Image.Image, nth: int) -> None:
    """Side and quadrant near the lower edge, as on a scanner's screen."""
    text = f"{SIDES[nth % 2]} {QUADRANTS[nth // 2 % 4]}"
    size = max(8, picture.height // 16)
    draw = ImageDraw.Draw(picture)
    draw.text((picture.width * 0.08, picture.height * 0.9), text, INK, ImageFont.load_default(size), anchor="ls")


def captions(plan: Plan, folder: Path) -> list[dict[str, str | list[str]]]:
    """The lines of metadata.jsonl: each class prompt with the marks that its image carries."""
    lines: list[dict[str, str | list[str]]] = []
    for record in read_busi(folder):
        drawn = {"calipers": plan.calipers and record.label != "normal", "text": plan.text}
        text = ", ".join([record.prompt, *(mark for mark, there in drawn.items() if there)])
        image, *masks = (path.relative_to(folder).as_posix() for path in (record.image, *map(file_of, record.masks)))
        lines.append({"file_name": image, "text": text, "mask": masks, "class": record.label, "group": record.group})
    return lines


def overview(folder: Path, columns: int = 7) -> Image.Image:
    """The first images of each class, one class a row."""
    rows: dict[str, list[Image.Image]] = {}
    for label in (label for label in CLASSES if (folder / label).is_dir()):
        paths = [folder / label / f"{label} ({nth}).png" for nth in range(1, columns + 1)]
        rows[label] = [Image.open(path) for path in paths if path.exists()]
    return labelled_grid(list(rows.values()), list(rows))


def phantom_of(plan: Plan, label: str, nth: int) -> Phantom:
    """The nth phantom of a class. Every tenth is another scan of the breast before it."""
    original = nth - 1 if is_rescan(nth) else nth
    lesions = 3 if original % 60 == 27 else 2 if original % 20 == 7 else 1
    number = (original - 1) * len(CLASSES) + CLASSES.index(label)
    scan = SCANNERS[plan.scanner]
    return simulate(plan.seed, number, label, plan.size, lesions=lesions, rescan=int(is_rescan(nth)), scan=scan)


def is_rescan(nth: int) -> bool:
    """Whether the nth image of a class is a near-duplicate of the one before."""
    return nth % 10 == 0


def families(n: int) -> list[list[str]]:
    """Names of the images that show the same breast, as in BUSI's list of near-duplicates."""
    stems = [(CLASSES[i % len(CLASSES)], i // len(CLASSES) + 1) for i in range(n)]
    return [[f"{label} ({nth - 1}).png", f"{label} ({nth}).png"] for label, nth in stems if is_rescan(nth)]
