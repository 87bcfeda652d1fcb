"""The options of train.py: what a user changes per run. The paper states no numbers: the defaults are ours."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ldm_us.checks import check_device, check_seed
from ldm_us.config import PREDICTIONS
from ldm_us.training.tensorboard import summary_writer

STAGES = ("vae", "unet", "controlnet")
VAE_LR_PER_IMAGE = 4.5e-6  # LDM's base learning rate, times the images of a step
DIFFUSION_LR = 1e-5


@dataclass(frozen=True)
class TrainOptions:
    """One run. What changes the numbers of a run may not change when it resumes; see FREE."""

    stage: str
    data: tuple[Path, ...]
    weights: Path | None
    preset: str | None
    out: Path
    steps: int | None
    epochs: float | None
    batch: int
    accumulate: int
    lr: float | None
    warmup: int
    weight_decay: float
    clip: float
    ema: float
    caption_dropout: float
    objective: str | None
    min_snr: float | None
    offset_noise: float
    train_text: bool
    text_warmup: int
    flip: bool
    held_out: float
    seed: int
    size: int | None
    precision: str
    device: str
    log_every: int
    save_every: int
    sample_every: int
    validate_every: int
    tensorboard: bool
    dry_run: bool

    @property
    def images_per_step(self) -> int:
        """The global batch: what one optimiser step sees."""
        return self.batch * self.accumulate

    @property
    def learning_rate(self) -> float:
        """--lr, or the stage's default."""
        if self.lr is not None:
            return self.lr
        return VAE_LR_PER_IMAGE * self.images_per_step if self.stage == "vae" else DIFFUSION_LR


# A resumed run may differ in these: how long it runs, where, and what it shows. Another device rounds differently.
FREE = (
    *("out", "steps", "epochs", "device", "dry_run"),
    *("log_every", "save_every", "sample_every", "validate_every", "tensorboard"),
)


def build_parser() -> argparse.ArgumentParser:
    """Describe train.py's command line."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train one stage: the autoencoder, the denoiser, or a ControlNet on lesion masks. "
        "The same command again resumes. RUN/model.safetensors is the result.",
        epilog="The paper gives no hyper-parameters: every default here is our choice, after what the field uses.",
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="a BUSI folder, or several")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--weights", type=Path, metavar="FILE", help="start from a model.safetensors")
    start.add_argument("--preset", metavar="NAME", help="start from random weights of this size: sd15, us128 or tiny")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="optimiser steps, those of a resumed run included")
    length.add_argument("--epochs", type=float, metavar="N", help="or passes over the data")
    add = parser.add_argument
    add("--batch", type=int, default=4, metavar="N", help="images at a time (%(default)s)")
    add("--accumulate", type=int, default=1, metavar="N", help="batches per optimiser step (%(default)s)")
    add("--lr", type=float, help=f"peak learning rate (vae {VAE_LR_PER_IMAGE} x images per step, else {DIFFUSION_LR})")
    add("--warmup", type=int, default=100, metavar="N", help="steps of linear warm-up (%(default)s)")
    add("--weight-decay", type=float, default=1e-2, metavar="X", help="of AdamW (%(default)s)")
    add("--clip", type=float, default=1.0, metavar="X", help="largest gradient norm (%(default)s)")
    add(
        "--ema", type=float, default=0.9999, metavar="X", help="decay of the averaged weights, 0 for none (%(default)s)"
    )
    add_diffusion_options(parser)
    add(
        "--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror half of the images, masks with them"
    )
    add("--held-out", type=float, default=0.1, metavar="P", help="share kept for evaluation (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, order and noise (%(default)s)")
    add("--size", type=int, metavar="PIXELS", help="side of the training images (the preset's)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, for GPUs and CPUs with AMX")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    add("--log-every", type=int, default=10, metavar="N", help="steps per line of log.jsonl (%(default)s)")
    add("--save-every", type=int, default=500, metavar="N", help="steps per resumable state (%(default)s)")
    add("--sample-every", type=int, default=500, metavar="N", help="steps per sample grid, 0 for none (%(default)s)")
    add("--validate-every", type=int, default=500, metavar="N", help="steps per validation, 0 for none (%(default)s)")
    add("--tensorboard", action="store_true", help="log to RUN/tensorboard as well (needs the extra logs)")
    add("--dry-run", action="store_true", help="print the resolved configuration and parameter counts, and stop")
    return parser


def add_diffusion_options(parser: argparse.ArgumentParser) -> None:
    """What the unet and controlnet stages learn: text, target and weights of the loss."""
    add = parser.add_argument
    add("--caption-dropout", type=float, default=0.1, metavar="P", help="share of empty prompts (%(default)s)")
    add("--objective", choices=PREDICTIONS, help="what the denoiser predicts, noise or v (that of the start, else eps)")
    add("--min-snr", type=float, metavar="GAMMA", help="weigh noise levels, usually 5 (none: all count the same)")
    add("--offset-noise", type=float, default=0.0, metavar="X", help="noise per channel, added (%(default)s)")
    add("--train-text", action="store_true", help="unet stage: train the text encoder too, as LDM does from scratch")
    add(
        "--text-warmup",
        type=int,
        default=0,
        metavar="N",
        help="with --train-text: contrastive steps first, for a text encoder of random weights (%(default)s)",
    )


def parse_options(argv: list[str] | None = None) -> TrainOptions:
    """Read the command line; raise ValueError for numbers that make no sense."""
    values = vars(build_parser().parse_args(argv))
    options = TrainOptions(**(values | {"data": tuple(values["data"])}))
    at_least = {"batch": 1, "accumulate": 1, "warmup": 0, "weight_decay": 0}
    at_least |= {"log_every": 1, "save_every": 1, "sample_every": 0, "validate_every": 0, "text_warmup": 0}
    for name, least in at_least.items():
        if not getattr(options, name) >= least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: use {least} or more.")
    if not 0.0 <= options.caption_dropout <= 1.0:
        raise ValueError(f"--caption-dropout {options.caption_dropout}: use 0 (none) to 1 (all: no text is learned).")
    for name in ("held_out", "ema"):
        if not 0.0 <= getattr(options, name) < 1.0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: use a number from 0 up to below 1.")
    if not options.weight_decay < math.inf:
        raise ValueError(f"--weight-decay {options.weight_decay}: use a finite number.")
    check_seed(options.seed)
    for name in ("steps", "epochs", "lr", "clip", "size", "min_snr"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value}: use a finite number above 0.")
    if options.train_text and options.stage != "unet":
        raise ValueError(f"--train-text belongs to the unet stage, not to {options.stage}.")
    if options.text_warmup and not options.train_text:
        raise ValueError(f"--text-warmup {options.text_warmup} trains the text encoder: add --train-text.")
    check_diffusion_options(options)
    if options.tensorboard:
        summary_writer()
    check_device(options.device)
    return options


def check_diffusion_options(options: TrainOptions) -> None:
    """Refuse what the loss of the vae stage has no use for, and offset noise that is no number."""
    if not 0 <= options.offset_noise < math.inf:
        raise ValueError(f"--offset-noise {options.offset_noise}: use 0 (none) or a finite number above, such as 0.1.")
    given = {"--objective": options.objective, "--min-snr": options.min_snr, "--offset-noise": options.offset_noise}
    for name, value in given.items():
        if value and options.stage == "vae":
            raise ValueError(f"{name} belongs to the unet and controlnet stages: the vae stage predicts no noise.")
