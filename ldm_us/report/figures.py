"""Pictures made with the result of a run: how a sample comes about, and what the model makes by class or by mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm_us.config import MASK, PICTURE
from ldm_us.data.framing import Framing
from ldm_us.data.records import Record, followed, load_framed, shown_mask
from ldm_us.data.words import Words, words_of
from ldm_us.diffusion.ddim import check_steps
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import generators_of
from ldm_us.diffusion.sampling import Sampling, computing, draw_start, generate
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import to_picture
from ldm_us.files.stored_tensor import shown
from ldm_us.report.run_folder import Run
from ldm_us.synthesis.drawing import Wanted, walk
from ldm_us.synthesis.explain import decoded, spread
from ldm_us.synthesis.recipe import Recipe
from ldm_us.training.dataset import OTHER_SPLIT, data_hash, split_data
from ldm_us.training.reconstruction import psnr, reconstruct

SAMPLES = {"unet": 5, "controlnet": 4}  # in a row
ROWS, MOST_ROWS = ("normal", "benign", "malignant"), 8  # first, as in the paper's Figure 3; and how many
SHOWN = {True: 2, None: 2, False: 1}  # held-out images of a class, by whether it shows a structure


class Example(NamedTuple):
    """An image with its lesion mask."""

    name: str
    label: str
    prompt: str
    mask: Tensor  # (1, H, W) as the ControlNet follows it: 0 and 1, sums of 2^k, or greys
    x: Tensor | None  # (3, H, W) in [-1, 1]; None for a drawn mask


@dataclass(frozen=True)
class Figure:
    """Rows of pictures under column names."""

    kind: str  # meanings.html has the title and the meaning of each
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Image.Image | None]]]
    settings: str  # what it takes to make it again


def result_figures(
    run: Run, folders: Sequence[Path], steps: int = 50, seed: int = 0, device: str = "cpu"
) -> tuple[list[Figure], list[str]]:
    """The figures of a finished run, and what a reader should know about them."""
    assert run.result is not None
    try:
        model = load_model(run.path / "model.safetensors", device=device)
        words = words_of(run.path / "model.safetensors")
    except ValueError as error:
        return [], [f"No samples: {error}"]
    check_steps(model.schedule, steps)
    size = int(run.config.get("size") or model.config.image_size)
    framing = Framing(size, run.config.get("aspect", "squash"), model.config.size_multiple)
    sampling = Sampling(steps=steps, size=size, threads=None, exact=False)
    hint = model.config.control.hint
    examples, notes = read_examples(run.config, folders, framing, hint)
    if run.stage == "vae":
        return [reconstructions(model, examples)] if examples else [], notes
    if run.stage == "unet":
        rows = prompts_shown(words)
        one = ("malignant", words.prompt("malignant")) if "malignant" in words.classes else rows[-1]
        figures = [by_class(model, sampling, seed, rows), strip(model, sampling, seed, *one, None)]
        return figures, [] if examples else notes
    if not examples:
        examples = drawn_examples(size, words, hint)
        notes.append("The masks below were drawn for this report.")
    first = examples[0]
    return [
        by_mask(model, sampling, seed, examples),
        strip(model, sampling, seed, first.label, first.prompt, first),
    ], notes


def reconstructions(model: LatentDiffusion, examples: Sequence[Example]) -> Figure:
    """Held-out images, what the autoencoder makes of them, and the difference."""
    names, pictures, columns = ("original", "reconstruction", "difference x 4"), [], []
    for example in examples:
        assert example.x is not None
        x_hat = reconstruct(model, example.x[None])[0]
        grey, grey_hat = (image.mean(dim=0, keepdim=True) / 2 + 0.5 for image in (example.x, x_hat))
        pictures.append([to_picture(image) for image in (grey, grey_hat, 0.5 + 2 * (grey_hat - grey))])
        columns.append(f"{example.label}, {psnr(grey_hat, grey):.1f} dB")
    rows = list(zip(names, zip(*pictures, strict=True), strict=True))
    return Figure("reconstructions", columns, rows, "Decoded from the posterior mean, without noise.")


def prompts_shown(words: Words) -> list[tuple[str, str]]:
    """(class, prompt): of every class, those of ROWS first; of a model without classes its most frequent prompts."""
    classes = [*(label for label in ROWS if label in words.classes), *(one for one in words.classes if one not in ROWS)]
    if classes:
        return [(label, words.prompt(label)) for label in classes[:MOST_ROWS]]
    return [(shown(prompt, 40), prompt) for prompt in words.prompts[:MOST_ROWS]] or [("no text", "")]


def by_class(model: LatentDiffusion, sampling: Sampling, seed: int, prompts: Sequence[tuple[str, str]]) -> Figure:
    """Samples of every class, as in the paper's Figure 3."""
    seeds = [seed + i for i in range(SAMPLES["unet"])]
    rows = [(label, sample(model, sampling, prompt, None, seeds)) for label, prompt in prompts]
    settings = settings_of(model, sampling, False, f"Prompts '{prompts[0][1]}' and so on.")
    return Figure("by class", [f"seed {own}" for own in seeds], rows, settings)


def by_mask(model: LatentDiffusion, sampling: Sampling, seed: int, examples: Sequence[Example]) -> Figure:
    """Mask, original and samples, as in the paper's Figure 4."""
    seeds = [seed + i for i in range(SAMPLES["controlnet"])]
    with_original = any(example.x is not None for example in examples)
    rows: list[tuple[str, Sequence[Image.Image | None]]] = []
    for example in examples:
        cells: list[Image.Image | None] = [to_picture(shown_mask(example.mask, model.config.control.hint))]
        if with_original:
            cells.append(None if example.x is None else to_picture(example.x[:1] / 2 + 0.5))
        samples = sample(model, sampling, example.prompt, example.mask, seeds)
        rows.append((example.name, [*cells, *samples]))
    columns = ["mask", *(["original"] if with_original else []), *(f"seed {own}" for own in seeds)]
    settings = settings_of(model, sampling, True, "The prompt names the class of the mask.")
    return Figure("by mask", columns, rows, settings)


def strip(
    model: LatentDiffusion, sampling: Sampling, seed: int, label: str, prompt: str, example: Example | None
) -> Figure:
    """One sample in the making: the latents and the predicted clean ones, decoded, at a few timesteps."""
    mask = None if example is None else example.mask
    sampling = of_size(sampling, mask)
    with computing(model, sampling):
        recipe = Recipe(sampling.resolved(model.config, masked=mask is not None))
        one = Wanted(prompt, seed, mask)
        steps = list(walk(model, [one], recipe, (), generators_of([seed])))
        z_T = draw_start(model, recipe.sampling, generators_of([seed]), [one.prompt])
        z = [z_T, *(step.z for step in steps)]  # before each step, and after the last
        chosen = spread(len(steps))
        before = [decoded(model, z[i])[0] for i in chosen]
        predicted = [decoded(model, steps[i].z_0_hat)[0] for i in chosen]
    rows = [("z_t decoded", before), ("predicted z_0 decoded", predicted)]
    more = f"Seed {seed}, class {label}" + (f", mask {example.name}." if example else ".")
    settings = settings_of(model, sampling, mask is not None, more)
    return Figure("strip", [f"t = {steps[i].t}" for i in chosen], rows, settings)


def sample(
    model: LatentDiffusion, sampling: Sampling, prompt: str, mask: Tensor | None, seeds: Sequence[int]
) -> list[Image.Image]:
    """One sample per seed."""
    masks = None if mask is None else mask.expand(len(seeds), -1, -1, -1)
    images = generate(model, [prompt] * len(seeds), seeds=seeds, masks=masks, sampling=of_size(sampling, mask))
    return [to_picture(x.mean(dim=0, keepdim=True)) for x in images]


def of_size(sampling: Sampling, mask: Tensor | None) -> Sampling:
    """A Sampling at the size of a mask (1, H, W), where there is one."""
    return sampling if mask is None else replace(sampling, size=(mask.shape[1], mask.shape[2]))


def settings_of(model: LatentDiffusion, sampling: Sampling, masked: bool, more: str) -> str:
    """What it takes to make the samples again."""
    control = f", control scale {model.config.control.scale:g}" if masked else ""
    return f"{more} DDIM, {sampling.steps} steps, guidance {model.config.guidance(masked):g}{control}."


def read_examples(
    config: dict[str, Any], folders: Sequence[Path], framing: int | Framing, hint: tuple[str, ...] = MASK
) -> tuple[list[Example], list[str]]:
    """A few held-out images of each class, and notes; none where the data cannot be read. hint: of the ControlNet."""
    try:
        train, held_out = split_data(folders, float(config["held_out"]))
        notes = []
        if not held_out:
            notes.append("The run held no images out: the originals below are training images.")
        elif data_hash(train) != config["data_sha256"]:
            notes.append(
                f"The data have changed since training ({OTHER_SPLIT}): the originals below may be training images."
            )
        examples = []
        for record in choose(held_out or train):
            x, mask = load_framed(followed(record, hint), framing)
            examples.append(Example(record.image.stem, record.label, record.prompt, mask, x))
        return examples, notes
    except (ValueError, OSError) as error:
        return [], [f"The data of the run cannot be read, so no originals are shown: {error}"]


def choose(records: Sequence[Record]) -> list[Record]:
    """The first few of each class, those with a mask file before those without."""
    chosen: list[Record] = []
    for label in sorted({record.label for record in records})[:MOST_ROWS]:
        of_class = [record for record in records if record.label == label]
        chosen += sorted(of_class, key=lambda record: not record.masks)[: SHOWN[of_class[0].shows]]
    return chosen


def drawn_examples(size: int, words: Words, hint: tuple[str, ...] = MASK) -> list[Example]:
    """An oval lying for benign, and one standing for malignant, in the middle, of all structures at once."""
    white = 255 if hint == PICTURE else 2 ** len(hint) - 1
    examples, place, others = [], torch.linspace(-0.5, 0.5, size), prompts_shown(words)
    # Half axes as shares of the side.
    for name, label, width, height in (("lying", "benign", 0.24, 0.13), ("standing", "malignant", 0.13, 0.24)):
        oval = (place[None, :] / width) ** 2 + (place[:, None] / height) ** 2 <= 1
        label, prompt = (label, words.prompt(label)) if label in words.classes else others[0]
        examples.append(Example(f"drawn, {name}", label, prompt, white * oval.float()[None], None))
    return examples
