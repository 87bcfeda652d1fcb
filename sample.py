"""Sample ultrasound images by class, by prompt, or to follow a mask; a grid like the paper's Figures 3 and 4.

    python sample.py                                    # four samples of each class, from the bundled us128 model
    python sample.py --weights runs/controlnet/model.safetensors --class malignant --mask mask.png --n 4 --out samples

Follow one prompt: Subject -> tokenize -> generate (ldm_us/sampling.py) -> PNG with fields, manifest.jsonl, grid.png.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import ldm_us
from ldm_us.atomic import sha256_file
from ldm_us.checkpoint import BUNDLED, load_model
from ldm_us.checks import check_device, check_finite_options, check_seed
from ldm_us.data.records import Record, load_mask, load_pair
from ldm_us.ddim import check_steps
from ldm_us.entry import run_command
from ldm_us.info import describe_model
from ldm_us.model import LatentDiffusion
from ldm_us.pictures import labelled_grid, save_png, to_picture
from ldm_us.sampling import SAMPLERS, check_size, generate
from ldm_us.subjects import Subject, choose_subjects

MOST_ROWS = 24  # of the grid; the files hold every sample
COLUMNS = 8


def build_parser() -> argparse.ArgumentParser:
    """Describe sample.py's command line."""
    parser = argparse.ArgumentParser(prog="sample.py", description="Sample images. Synthetic: not for diagnosis.")
    add = parser.add_argument
    add("--weights", type=Path, default=BUNDLED, metavar="FILE", help="a model.safetensors (the bundled us128)")
    add("--class", dest="labels", action="append", default=[], metavar="NAME", help="normal, benign, malignant (all)")
    add("--prompt", metavar="TEXT", help="any other text instead of a class")
    add("--negative-prompt", default="", metavar="TEXT", help="what to steer away from (nothing)")
    add("--mask", type=Path, metavar="PATH", help="a mask, white on black, or a folder: needs a ControlNet")
    add("--n", type=int, default=4, metavar="N", help="samples per class, prompt or mask (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the first sample; the next ones follow (%(default)s)")
    add("--steps", type=int, default=50, metavar="S", help="model calls per image, 1..1000 (%(default)s)")
    add("--sampler", choices=SAMPLERS, default="ddim", help="(%(default)s)")
    add("--eta", type=float, default=0.0, metavar="X", help="noise of ddim: 0 none, 1 as much as ddpm (%(default)s)")
    add("--guidance", type=float, metavar="S", help="weight of the text, 1: none (sd15 7.5; us128 3, with a mask 1)")
    add("--control-scale", type=float, metavar="X", help="weight of the mask (1 for sd15, 2 for us128)")
    add("--size", type=int, metavar="PIXELS", help="side of the images (what the model was made for)")
    add("--batch", type=int, default=4, metavar="N", help="images at a time; changes no image (%(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, for GPUs and CPUs with AMX")
    add("--out", type=Path, metavar="DIR", help="folder for the images (samples, or the first free of samples-2, ...)")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    add("--info", action="store_true", help="say what --weights holds and where it came from, and stop")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, load, sample, save."""
    options = build_parser().parse_args(argv)
    if options.info:
        print(describe_model(options.weights))
        return 0
    options.out = options.out or first_free(Path("samples"))
    check_options(options)
    subjects = choose_subjects(options.labels, options.prompt, options.mask)
    model = load_model(options.weights, device=options.device)
    size = model.config.image_size if options.size is None else options.size
    if options.guidance is None:
        options.guidance = model.config.guidance(masked=options.mask is not None)
    if options.control_scale is None:
        options.control_scale = model.config.control.scale
    check_size(model.config, size)
    check_steps(model.schedule, options.steps)
    if options.mask is not None and model.controlnet is None:
        raise ValueError(f"{options.weights}: no ControlNet in it to follow --mask. Train one: `train.py controlnet`.")

    masks = [load_mask(subject.masks, size) if subject.masks else None for subject in subjects]
    originals = [load_original(subject, size) for subject in subjects[:MOST_ROWS]]
    fields = shared_fields(options, size)
    options.out.mkdir(parents=True, exist_ok=True)
    pictures: list[list[Image.Image | None]] = [[] for _ in subjects]
    with open(options.out / "manifest.jsonl", "w") as manifest:
        for row, seed, x in samples(options, model, subjects, masks, size):
            entry = fields | subject_fields(subjects[row], masks[row]) | {"seed": seed}
            name = f"{row:04d}_{subjects[row].name.replace(' ', '_')}_seed{seed}.png"
            picture = to_picture(x.mean(dim=0, keepdim=True))  # the three channels are one grey image
            save_png(picture, options.out / name, {key: str(value) for key, value in entry.items()})
            manifest.write(json.dumps({"file_name": name} | entry) + "\n")
            manifest.flush()
            if row < MOST_ROWS and len(pictures[row]) < COLUMNS:
                pictures[row].append(picture)
    save_png(grid(subjects[:MOST_ROWS], masks, originals, pictures[:MOST_ROWS]), options.out / "grid.png")
    print(f"wrote {len(subjects) * options.n} images, manifest.jsonl and grid.png to {options.out}")
    return 0


def samples(
    options: argparse.Namespace,
    model: LatentDiffusion,
    subjects: list[Subject],
    masks: list[Tensor | None],
    size: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """Every (row, seed, image (3, H, W) in [0, 1]); the n seeds are the same for every row."""
    wanted = [(row, options.seed + i) for row in range(len(subjects)) for i in range(options.n)]
    with tqdm(total=len(wanted) * options.steps, unit="step", desc="sampling") as bar:
        for start in range(0, len(wanted), options.batch):
            chunk = wanted[start : start + options.batch]
            hints = [masks[row] for row, _ in chunk]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                images = generate(
                    model,
                    [subjects[row].prompt for row, _ in chunk],
                    negative_prompts=options.negative_prompt,
                    masks=None if options.mask is None else torch.stack([hint for hint in hints if hint is not None]),
                    seeds=[seed for _, seed in chunk],
                    size=size,
                    sampler=options.sampler,
                    steps=options.steps,
                    eta=options.eta,
                    guidance=options.guidance,
                    control_scale=options.control_scale,
                    on_step=lambda step: bar.update(len(step.z)),
                )
            for (row, seed), x in zip(chunk, images, strict=True):
                yield row, seed, x


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is loaded or written."""
    for name in ("n", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: use 1 or more.")
    check_device(options.device)
    check_seed(options.seed)
    check_seed(options.seed + options.n)
    given = [name for name in ("guidance", "control_scale") if getattr(options, name) is not None]
    check_finite_options(options, ("eta", *given))
    if not 0 <= options.eta <= 1:
        raise ValueError(f"--eta {options.eta}: use 0 (no noise) to 1 (as much as ddpm).")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())) and not options.overwrite:
        raise ValueError(f"--out {options.out}: exists and is not empty. Choose another folder, or add --overwrite.")


def first_free(out: Path) -> Path:
    """`out`, or the first of out-2, out-3, ... that does not exist."""
    candidates = (out if i == 1 else out.with_name(f"{out.name}-{i}") for i in count(1))
    return next(path for path in candidates if not path.exists())


def shared_fields(options: argparse.Namespace, size: int) -> dict[str, str | int | float]:
    """What every sample of this call has in common."""
    return {
        "synthetic": "made by a generative model, not for diagnosis",
        "software": f"ldm_us {ldm_us.__version__}",
        "weights_sha256": sha256_file(options.weights),
        "negative_prompt": options.negative_prompt,
        "sampler": options.sampler,
        "steps": options.steps,
        "eta": options.eta,
        "guidance": options.guidance,
        "control_scale": options.control_scale,
        "size": size,
        "precision": options.precision,
    }


def subject_fields(subject: Subject, mask: Tensor | None) -> dict[str, str]:
    """What the samples of one row have in common."""
    if mask is None:
        return {"prompt": subject.prompt}
    digest = hashlib.sha256(mask.to(torch.uint8).numpy().tobytes()).hexdigest()
    return {"prompt": subject.prompt, "mask": ", ".join(path.name for path in subject.masks), "mask_sha256": digest}


def load_original(subject: Subject, size: int) -> Image.Image | None:
    """The image a mask was drawn on, for the grid; its size must be that of the mask."""
    if subject.original is None:
        return None
    x, _ = load_pair(Record(subject.original, subject.masks, subject.name, subject.prompt, subject.name), size)
    return to_picture(x[:1] / 2 + 0.5)


def grid(
    subjects: list[Subject],
    masks: list[Tensor | None],
    originals: list[Image.Image | None],
    pictures: list[list[Image.Image | None]],
) -> Image.Image:
    """Rows of samples; with masks, the mask and its original first (Figure 4), else samples alone (Figure 3)."""
    names = [subject.name for subject in subjects]
    if masks[0] is None:
        return labelled_grid(pictures, names)
    with_original = any(original is not None for original in originals)
    rows: list[list[Image.Image | None]] = []
    for mask, original, row in zip(masks, originals, pictures, strict=False):
        assert mask is not None
        rows.append([to_picture(mask), *([original] if with_original else []), *row])
    columns = ["mask", *(["original"] if with_original else []), *["sample"] * max(map(len, pictures))]
    return labelled_grid(rows, names, columns)


if __name__ == "__main__":
    sys.exit(run_command(main))
