"""The same weights in ldm_us and in diffusers and transformers, compared tensor by tensor. For auditors; make parity.

    python bench/parity.py                                # the bundled model; filled weights at size tiny, eps and v
    python bench/parity.py --preset sd15 --steps 2        # filled weights at the size of Stable Diffusion 1.5
    python bench/parity.py --weights model.safetensors --steps 50

Each model is exported with `python -m weights_convert export` to a temporary diffusers folder, which their libraries
load. Then both sides compute, in float32 and from the same inputs: tokens, text states, autoencoder, denoiser,
ControlNet, noise schedule, single steps of every sampler, and whole samples with guidance 7.5, every z_t on the way.
Filled weights are a function of each tensor's name (tests/golden/fill.py). Exit code 0: no relative difference
||ours - theirs|| / ||theirs|| is above 1e-4; 1: there is one, and the first is named; 2: nothing was compared.
"""

import argparse
import io
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench and tests are not installed

from ldm_us.config import PRESETS
from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/parity.py")
    about = "The same weights in ldm_us and in diffusers and transformers, compared tensor by tensor in float32: "
    about += "tokens, text states, autoencoder, denoiser, ControlNet, noise schedule, single steps of every "
    about += "sampler, whole samples. Without options: the bundled model, and filled weights at size tiny. Seeds "
    about += "are fixed; nothing is written."
    codes = "exit codes: 0 no relative difference is above 1e-4, 1 there is one, 2 nothing was compared, 130 Ctrl-C"
    examples = ("--preset sd15 --steps 2", "--weights model.safetensors --steps 50")
    describe(parser, about, *examples, codes=codes)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", type=Path, metavar="FILE", help="a model file of ours")
    which.add_argument("--preset", choices=tuple(PRESETS), help="us128: the bundled model; tiny, sd15: filled weights")
    parser.add_argument("--steps", type=int, default=5, metavar="S", help="of whole samples (%(default)s)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="of whole samples (what the model was made for)")
    parser.add_argument("--device", default="cpu", help="of both sides: cpu, cuda, cuda:1 (%(default)s)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

import torch
from torch import Tensor

from bench.parity_networks import Pair, compare_controlnet, compare_text, compare_unet, compare_vae
from bench.parity_sampling import compare_sample, compare_schedule, compare_steps, samples_of, step_seconds
from bench.parity_table import HEADER, Row, first_above, verdict
from ldm_us.config import BUNDLED, TINY, ModelConfig
from ldm_us.diffusion.model import check_size
from ldm_us.files.checkpoint import LazyTensor, load_model, model_metadata, write_safetensors
from ldm_us.runtime.checks import check_device, check_extra
from ldm_us.runtime.entry import run_command
from tests.golden.fill import weight
from weights_convert.__main__ import main as weights_convert
from weights_convert.convert import target_shapes

PACKAGES = ("diffusers", "transformers", "accelerate")
TINY_V = replace(TINY, name="tiny, v", schedule=replace(TINY.schedule, prediction="v"))
FILLED = {"tiny": (TINY, TINY_V), "sd15": (PRESETS["sd15"],)}  # by preset; us128 is the bundled model
HINT_GAIN = 16.0  # an inverted mask then changes the hint's features by 1.3 of their norm; with 1, by 5e-8


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every model that was asked for, print the tables, return the exit code."""
    options = parse(argv)
    check_extra("bench", *PACKAGES)
    check_device(options.device)
    quiet()
    torch.backends.cudnn.allow_tf32 = False  # on a GPU convolutions would round to 10 bits
    print(", ".join(f"{package} {version(package)}" for package in ("torch", *PACKAGES)))
    print(f"float32, {options.device}, {torch.get_num_threads()} threads")
    differ = False
    for model in models_of(options):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            weights = model if isinstance(model, Path) else fill_model(model, Path(folder) / "filled.safetensors")
            differ |= compare_and_print(weights, Path(folder) / "diffusers", options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of both sides together: {peak:.1f} GiB, pages of the weight files included")
    return int(differ)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    options = build_parser().parse_args(argv)
    if not 1 <= options.steps < 1000:
        raise ValueError(f"--steps {options.steps}: use 1 to 999; at 1000 diffusers' grid leaves the schedule.")
    return options


def models_of(options: argparse.Namespace) -> list[Path | ModelConfig]:
    """Model files, and configs whose weights are to be filled."""
    if options.weights is not None:
        return [options.weights]
    presets = ("us128", "tiny") if options.preset is None else (options.preset,)
    return [model for preset in presets for model in FILLED.get(preset, (BUNDLED,))]


def fill_model(config: ModelConfig, path: Path) -> Path:
    """Write a model file, ControlNet included, whose tensors follow from their names; no zero convolution is zero."""
    tensors = [
        LazyTensor(name, shape, torch.float32, partial(fill, name, shape))
        for name, shape in target_shapes(config).items()
    ]
    write_safetensors(path, tensors, model_metadata(config))
    return path


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor. fill.py shrinks convolutions; eight such in a row would leave nothing of a hint."""
    gain = HINT_GAIN if name.startswith("controlnet.hint_network.") and name.endswith("weight") else 1.0
    return gain * torch.from_numpy(weight(name, shape))


def compare_and_print(weights: Path, folder: Path, options: argparse.Namespace) -> bool:
    """One model: a table, the first difference above the bar, the speed of both sides. -> whether there is one."""
    pair = load_pair(weights, folder, options.device)
    config = pair.ours.config
    size = config.image_size if options.size is None else options.size
    check_size(config, size)
    samples = samples_of(pair, options.steps, size)
    name = weights.name if weights.parent != folder.parent else f"{config.name}, filled weights"
    title = f"{name}: predicts {config.schedule.prediction}; samples of {options.steps} steps at {size}x{size}"
    without = "" if pair.ours.controlnet is not None else "; it has no ControlNet"
    print(f"\n## {title}{without}\n\n{HEADER}")
    rows = []
    for row in compare_all(pair, samples):
        print(row, flush=True)
        rows.append(row)
    print(f"\n{verdict(rows)}")
    for sample in samples:
        print(step_seconds(rows, sample.name))
    return first_above(rows) is not None


def compare_all(pair: Pair, samples: Sequence) -> Iterator[Row]:
    """Every comparison, in the order of the computation: what is wrong first is the cause of what follows."""
    parts = (compare_text, compare_vae, compare_unet, compare_controlnet, compare_schedule, compare_steps)
    return chain(*(part(pair) for part in parts), *(compare_sample(pair, sample) for sample in samples))


def load_pair(weights: Path, folder: Path, device: str) -> Pair:
    """Load a model file, export it to `folder` and load that with diffusers; nothing is downloaded."""
    export(weights, folder, "diffusers")
    return open_pair(weights, folder, device)


def export(weights: Path, out: Path, layout: str) -> None:
    """Write a model file of ours in another layout, without a word."""
    with redirect_stdout(io.StringIO()):
        weights_convert(["export", str(weights), "--format", layout, "--out", str(out)])


def open_pair(weights: Path, folder: Path, device: str, dtype: torch.dtype = torch.float32) -> Pair:
    """Load a model file of ours, and the diffusers folder that was exported from it."""
    from diffusers import ControlNetModel, StableDiffusionPipeline

    ours = load_model(weights, device, dtype)
    options: dict[str, Any] = {"local_files_only": True, "torch_dtype": dtype}
    theirs = StableDiffusionPipeline.from_pretrained(folder, **options).to(device)
    controlnet = None
    if ours.controlnet is not None:
        controlnet = ControlNetModel.from_pretrained(folder / "controlnet", **options).to(device)
    return Pair(ours, theirs, controlnet)


def quiet() -> None:
    """Keep their libraries off the network and their progress bars out of the table; errors still show."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when they are imported
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(run_command(main))
