"""Four starts of the bundled model, side by side: N(0, I), that from the last timestep on, noised images, the prior.

    python bench/starts.py --data runs/bundled/unseen --out docs/images/four_starts.png

Every row has the same seeds and prompts. What the last two share is the blurred image that z_T holds in training; the
chart shows what that does to the grey of eight bands of depth.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/starts.py")
    about = "Four starts of a model, side by side: N(0, I), that from the last timestep on, noised images, the "
    about += "prior. Every row has the same seeds and prompts; a chart shows the grey of eight bands of depth."
    describe(parser, about, "--data runs/bundled/unseen --out four_starts.png")
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="images that the model has not seen")
    add("--weights", type=Path, metavar="FILE", help="a model with a start prior (the bundled one)")
    add("--n", type=int, default=24, metavar="N", help="samples from each start (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the first sample; the next ones follow (%(default)s)")
    add("--device", default="cpu", help="of the model: cpu, cuda, cuda:1 (%(default)s)")
    add("--out", type=Path, required=True, metavar="FILE", help="the picture, a PNG")
    add("--overwrite", action="store_true", help="replace the file --out")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

import torch
from PIL import Image
from torch import Tensor

from ldm_us.config import BUNDLED
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import load_image
from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule, q_sample
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import draw, generators_of, latent_shape, start_from
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.display.charts import COLOURS, Margins, legend, new_figure, scale, style, to_picture, write
from ldm_us.files.checkpoint import load_model
from ldm_us.files.pictures import labelled_grid, save_png
from ldm_us.files.pictures import to_picture as grey_picture
from ldm_us.runtime.checks import check_new_file, check_words
from ldm_us.runtime.entry import run_command

SHOWN, BANDS = 6, 8  # samples in a row; bands of depth
SAMPLING = Sampling(steps=20, guidance=1.0)
NAMES = ("N(0, I)", "N(0, I), from t = 999", "noised images", "start prior")


def main(argv: list[str] | None = None) -> int:
    """Sample from each start, write the picture, print the bands."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    check_new_file(options.out, options.overwrite)
    model = load_model(options.weights or BUNDLED, options.device)
    records = read_datasets(options.data)
    records = records[:: max(1, len(records) // options.n)][: options.n]
    x = torch.stack([load_image(record.image, model.config.image_size) for record in records])
    seeds = range(options.seed, options.seed + len(x))
    prompts = [record.prompt for record in records]
    samples = {
        name: generate(of_start, prompts, seeds=seeds, z_T=z_T, sampling=SAMPLING).cpu()
        for name, (of_start, z_T) in zip(NAMES, starts(model, x, prompts, seeds), strict=True)
    }
    bands = {name: depth_bands(images) for name, images in ({"images": x / 2 + 0.5} | samples).items()}
    save_png(beside(grid(samples, x / 2 + 0.5), chart(bands)), options.out)
    print(json.dumps({name: [round(value) for value in values] for name, values in bands.items()}))
    return 0


def starts(
    model: LatentDiffusion, x: Tensor, prompts: Sequence[str], seeds: Sequence[int]
) -> list[tuple[LatentDiffusion, Tensor]]:
    """Each start's model and its z_T (b, c, h, w), for images x (b, 3, H, W) in [-1, 1]."""
    trailing = load_like(model, spacing="trailing")
    generators = generators_of(seeds)
    eps = draw((len(x), *latent_shape(model, None)), generators)
    t = torch.full((len(x),), ddim_timesteps(model.schedule, SAMPLING.steps)[0][0])
    with torch.no_grad():
        z_0 = torch.cat([model.vae.encode(each[None].to(model.device)).mean.cpu() for each in x])
    noised = q_sample(model.schedule, z_0, t, eps)
    prior = start_from(model, eps, generators, SAMPLING.steps, True, prompts)
    return [(model, eps), (trailing, eps), (model, noised), (model, prior)]


def load_like(model: LatentDiffusion, spacing: str) -> LatentDiffusion:
    """The same weights on another grid of timesteps."""
    schedule = dataclasses.replace(model.config.schedule, spacing=spacing)
    other = LatentDiffusion(dataclasses.replace(model.config, schedule=schedule))
    other.controlnet = model.controlnet
    other.load_state_dict(model.state_dict())
    other.schedule = make_schedule(schedule)
    return other.to(model.device).requires_grad_(False)


def depth_bands(x: Tensor) -> list[float]:
    """Mean grey level of each band of depth of images (b, c, H, W) in [0, 1]."""
    return [255 * float(band.mean()) for band in x.chunk(BANDS, dim=2)]


def grid(samples: dict[str, Tensor], x: Tensor) -> Image.Image:
    """A row of images, and a row of samples of each start."""
    spread = torch.linspace(0, len(x) - 1, SHOWN).long()
    rows = [[grey_picture(each[:1]) for each in images[spread]] for images in (x, *samples.values())]
    return labelled_grid(rows, ("images", *NAMES))


def chart(bands: dict[str, Sequence[float]]) -> Image.Image:
    """Grey levels from the skin down, a line for each start, and the images."""
    with style():
        figure, (panel,) = new_figure(430, 420, margins=Margins(top=110))
        write(panel, (0, 86), "Mean grey level by depth", size=16)
        lines = []
        for i, (name, values) in enumerate(bands.items()):
            dashes = "--" if name == "images" else "-"
            lines += panel.plot(
                range(1, BANDS + 1), values, color=COLOURS[(i - 1) % len(COLOURS)], ls=dashes, label=name
            )
        legend(panel, lines, columns=2)
        scale(panel, "x", 0.5, BANDS + 0.5, whole=True, most=BANDS)
        scale(panel, "y", 0.0, 1.05 * max(max(values) for values in bands.values()))
        return to_picture(figure)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures on white, the second in the middle of the first's height."""
    whole = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    whole.paste(left.convert("RGB"), (0, 0))
    whole.paste(right.convert("RGB"), (left.width, (whole.height - right.height) // 2))
    return whole


if __name__ == "__main__":
    sys.exit(run_command(main))
