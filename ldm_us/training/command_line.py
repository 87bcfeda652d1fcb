"""The command line of train.py. The paper states no hyper-parameters: the defaults are ours, after the field's."""

import argparse
from pathlib import Path
from typing import Any

from ldm_us.config import PREDICTIONS
from ldm_us.networks.lora import TARGETS
from ldm_us.runtime.processes import local_device, process_count
from ldm_us.training.optimizers import OPTIMIZERS
from ldm_us.training.options import DIFFUSION_LR, STAGES, VAE_LR_PER_IMAGE, TrainOptions, check_options

YES_OR_NO = argparse.BooleanOptionalAction  # --flip and --no-flip


def parse_options(argv: list[str] | None = None) -> TrainOptions:
    """Read the command line; raise ValueError for numbers that make no sense and options that do not go together."""
    values = vars(build_parser().parse_args(argv))
    gpu = values["device"].startswith("cuda")
    defaults = {
        "cache": values["out"].parent / "cache",
        "workers": 2 if gpu else 0,
        "channels_last": gpu and not values["shard"],
    }
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    values |= {"device": local_device(values["device"]), "processes": process_count()}
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    options = TrainOptions(**fields)
    check_options(options)
    return options


def build_parser() -> argparse.ArgumentParser:
    """Describe train.py's command line."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train one stage: the autoencoder, the denoiser, or a ControlNet on lesion masks. "
        "The same command again resumes. RUN/model.safetensors is the result.",
        epilog="The paper gives no hyper-parameters: every default here is our choice, after what the field uses.",
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="datasets; `ldm_us.data audit` says which"
    )
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--weights", type=Path, metavar="FILE", help="start from a model.safetensors")
    start.add_argument("--preset", metavar="NAME", help="start from random weights of this size: sd15, us128 or tiny")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="optimiser steps, those of a resumed run included")
    length.add_argument("--epochs", type=float, metavar="N", help="or passes over the data")
    add_training(parser)
    add_diffusion(parser.add_argument_group("what the unet and controlnet stages learn"))
    add_fine_tuning(parser.add_argument_group("less to train, less to hold in memory"))
    add_machine(parser.add_argument_group("speed, and several processes under torchrun"))
    add_record(parser.add_argument_group("what is kept and shown"))
    return parser


def add_training(parser: argparse.ArgumentParser) -> None:
    """Steps, images and weights, of every stage."""
    add = parser.add_argument
    add("--data-weights", type=float, nargs="+", metavar="W", help="shares of the datasets (all images alike)")
    add("--batch", type=int, default=4, metavar="N", help="images at a time (%(default)s)")
    add("--accumulate", type=int, default=1, metavar="N", help="batches per optimiser step (%(default)s)")
    add("--lr", type=float, help=f"peak learning rate (vae {VAE_LR_PER_IMAGE} x images per step, else {DIFFUSION_LR})")
    add("--warmup", type=int, default=100, metavar="N", help="steps of linear warm-up (%(default)s)")
    add("--weight-decay", type=float, default=1e-2, metavar="X", help="(%(default)s)")
    add("--clip", type=float, default=1.0, metavar="X", help="largest gradient norm (%(default)s)")
    add("--ema", type=float, default=0.9999, metavar="X", help="decay of the averaged weights, 0: none (%(default)s)")
    add("--flip", action=YES_OR_NO, default=True, help="mirror half of the images, masks with them")
    add("--held-out", type=float, default=0.1, metavar="P", help="share kept for evaluation (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, order and noise (%(default)s)")
    add("--size", type=int, metavar="PIXELS", help="side of the training images (the preset's)")


def add_diffusion(group: "argparse._ArgumentGroup") -> None:
    """Text, target and weights of the loss."""
    add = group.add_argument
    add("--caption-dropout", type=float, default=0.1, metavar="P", help="share of empty prompts (%(default)s)")
    add("--objective", choices=PREDICTIONS, help="what the denoiser predicts, noise or v (that of the start, else eps)")
    add("--min-snr", type=float, metavar="GAMMA", help="weigh noise levels, usually 5 (none: all count the same)")
    add("--offset-noise", type=float, default=0.0, metavar="X", help="noise per channel, added (%(default)s)")
    add("--train-text", action="store_true", help="unet stage: train the text encoder too, as LDM does from scratch")
    add("--text-warmup", type=int, default=0, metavar="N", help="contrastive steps first, for a random text encoder")


def add_fine_tuning(group: "argparse._ArgumentGroup") -> None:
    """What is trained, and what it costs."""
    add = group.add_argument
    add("--lora", type=int, metavar="RANK", help="train low-rank updates of the attention alone")
    add("--lora-alpha", type=float, metavar="X", help="scale of the updates, times 1 / RANK (RANK)")
    add("--lora-targets", nargs="+", choices=TARGETS, metavar="P", help="q k v out self.q ... (q k v out)")
    add("--prompt-tokens", type=int, default=0, metavar="N", help="unet stage: learn N vectors before the words alone")
    add("--decoder-only", action="store_true", help="vae stage: train what decodes the latents, and leave those")
    add("--unlock-decoder", action="store_true", help="controlnet stage: train the UNet's decoder too, at a lower --lr")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="the others need less memory (%(default)s)")
    add("--gradient-checkpointing", action="store_true", help="compute activations twice instead of keeping them")


def add_machine(group: "argparse._ArgumentGroup") -> None:
    """How fast a step is; no figure changes beyond rounding."""
    add = group.add_argument
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, for GPUs and CPUs with bf16")
    add("--cache", type=Path, metavar="DIR", help="of latents and text states (cache, beside RUN)")
    add("--workers", type=int, metavar="N", help="processes that prepare batches (2 with a GPU, else 0)")
    add("--channels-last", action=YES_OR_NO, help="memory layout (yes with a GPU, else no)")
    add("--compile", action="store_true", help="let torch.compile fuse the networks: slow first steps")
    add("--shard", action="store_true", help="split weights and optimiser over the processes (FSDP2)")


def add_record(group: "argparse._ArgumentGroup") -> None:
    """Logs, states, pictures."""
    add = group.add_argument
    add("--log-every", type=int, default=10, metavar="N", help="steps per line of log.jsonl (%(default)s)")
    add("--save-every", type=int, default=500, metavar="N", help="steps per resumable state (%(default)s)")
    add("--sample-every", type=int, default=500, metavar="N", help="steps per sample grid, 0 for none (%(default)s)")
    add("--validate-every", type=int, default=500, metavar="N", help="steps per validation, 0 for none (%(default)s)")
    add("--tensorboard", action="store_true", help="log to RUN/tensorboard as well (needs the extra logs)")
    add("--restart", action="store_true", help="start again; a run that is in --out is renamed, not deleted")
    add("--dry-run", action="store_true", help="print the resolved configuration and parameter counts, and stop")
