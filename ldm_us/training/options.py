"""The options of train.py: what a user changes per run. The paper states no numbers: the defaults are ours."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ldm_us.checks import check_device, check_seed
from ldm_us.training.distributed import local_device, process_count

STAGES = ("vae", "unet", "controlnet")
VAE_LR_PER_IMAGE = 4.5e-6  # LDM's base learning rate, times the images of a step
DIFFUSION_LR = 1e-5
OPTIMIZERS = ("adamw", "adafactor", "adamw8bit")


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
    dry_run: bool
    data_weights: tuple[float, ...] | None
    decoder_only: bool
    unlock_decoder: bool
    optimizer: str
    gradient_checkpointing: bool
    channels_last: bool
    compile: bool
    shard: bool
    workers: int
    cache: Path
    restart: bool
    processes: int  # that torchrun started

    @property
    def images_per_step(self) -> int:
        """The global batch: what one optimiser step sees, all processes together."""
        return self.batch * self.accumulate * self.processes

    @property
    def trains_text(self) -> bool:
        """Whether the text states change while the stage trains."""
        return self.train_text

    @property
    def learning_rate(self) -> float:
        """--lr, or the stage's default."""
        if self.lr is not None:
            return self.lr
        return VAE_LR_PER_IMAGE * self.images_per_step if self.stage == "vae" else DIFFUSION_LR


# A resumed run may differ in these: how long it runs, where, how the work is cut up, and what it shows. Another device
# or another cut of the same global batch (images_per_step, which is fixed) rounds differently.
FREE = (
    *("out", "steps", "epochs", "log_every", "save_every", "sample_every", "validate_every", "dry_run", "restart"),
    *("device", "cache", "workers", "batch", "accumulate", "processes", "shard", "compile", "channels_last"),
    "gradient_checkpointing",
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
    parser.add_argument("--data-weights", type=float, nargs="+", metavar="W", help="shares of the folders in a batch")
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
    add("--caption-dropout", type=float, default=0.1, metavar="P", help="share of empty prompts (%(default)s)")
    add("--train-text", action="store_true", help="unet stage: train the text encoder too, as LDM does from scratch")
    add(
        "--text-warmup",
        type=int,
        default=0,
        metavar="N",
        help="with --train-text: contrastive steps first, for a text encoder of random weights (%(default)s)",
    )
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
    add("--dry-run", action="store_true", help="print the resolved configuration and parameter counts, and stop")
    add("--restart", action="store_true", help="start again; a run that is in --out is renamed, not deleted")
    add_fine_tuning(parser.add_argument_group("less to train, less to hold"))
    add_machine(parser.add_argument_group("speed and several processes (torchrun)"))
    return parser


def add_fine_tuning(group: "argparse._ArgumentGroup") -> None:
    """Options for what is trained and with how much memory."""
    add = group.add_argument
    add("--decoder-only", action="store_true", help="vae stage: train what decodes the latents, and leave those")
    add("--unlock-decoder", action="store_true", help="controlnet stage: train the UNet's decoder too, at a lower --lr")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="the others need less memory (%(default)s)")
    add("--gradient-checkpointing", action="store_true", help="compute activations twice instead of keeping them")


def add_machine(group: "argparse._ArgumentGroup") -> None:
    """Options that change how fast a step is, and no figure beyond rounding."""
    add = group.add_argument
    add("--cache", type=Path, metavar="DIR", help="of latents and text states (cache, beside RUN)")
    add("--workers", type=int, metavar="N", help="processes that prepare batches (2 with a GPU, else 0)")
    add("--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (yes with a GPU, else no)")
    add("--compile", action="store_true", help="let torch.compile fuse the networks: slow first steps")
    add("--shard", action="store_true", help="split weights and optimiser over the processes (FSDP2)")


def parse_options(argv: list[str] | None = None) -> TrainOptions:
    """Read the command line; raise ValueError for numbers that make no sense."""
    values = vars(build_parser().parse_args(argv))
    gpu = values["device"].startswith("cuda")
    defaults = {"cache": values["out"].parent / "cache", "workers": 2 if gpu else 0, "channels_last": gpu}
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    values |= {"data": tuple(values["data"]), "device": local_device(values["device"]), "processes": process_count()}
    values |= {"data_weights": None if values["data_weights"] is None else tuple(values["data_weights"])}
    options = TrainOptions(**values)
    at_least = {"batch": 1, "accumulate": 1, "warmup": 0, "weight_decay": 0}
    at_least |= {"log_every": 1, "save_every": 1, "sample_every": 0, "validate_every": 0}
    at_least |= {"workers": 0, "text_warmup": 0}
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
    for name in ("steps", "epochs", "lr", "clip", "size"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} {value}: use a finite number above 0.")
    check_belongs(options)
    check_device(options.device)
    return options


def check_belongs(options: TrainOptions) -> None:
    """Refuse options of another stage, and those that do not go together."""
    for name, stage in (("train_text", "unet"), ("decoder_only", "vae"), ("unlock_decoder", "controlnet")):
        if getattr(options, name) and options.stage != stage:
            raise ValueError(f"--{name.replace('_', '-')} belongs to the {stage} stage, not to {options.stage}.")
    if options.text_warmup and not options.train_text:
        raise ValueError(f"--text-warmup {options.text_warmup} trains the text encoder: add --train-text.")
    if options.decoder_only and options.weights is None:
        raise ValueError("--decoder-only keeps the encoder of --weights: a random one is no use. Leave it away.")
    if options.shard and options.processes == 1:
        raise ValueError("--shard splits a model over processes: start several with torchrun --nproc-per-node N.")
    if options.shard and options.optimizer != "adamw":
        raise ValueError(f"--shard takes --optimizer adamw: {options.optimizer} needs whole tensors.")
    weights = options.data_weights
    if weights is not None and len(weights) != len(options.data):
        raise ValueError(f"--data-weights: {len(weights)} for {len(options.data)} --data folders. Give one per folder.")
    if weights is not None and not (all(0 <= w < math.inf for w in weights) and sum(weights) > 0):
        raise ValueError(f"--data-weights {' '.join(map(str, weights))}: use numbers from 0, not all of them 0.")
