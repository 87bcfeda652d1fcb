"""The command line of train.py: an option for every field of TrainOptions. Nothing here waits for PyTorch."""

import argparse
import json
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from ldm_us.config import ASPECTS
from ldm_us.runtime.command_line import EXIT_CODES, add_two_helps, short_usage
from ldm_us.runtime.processes import local_device, process_count
from ldm_us.training.options import CAPTION_DROPOUT, STAGES, TrainOptions, check_options, flag

EVERY_DAY = (  # in --help; --help-all has the rest
    *("stage", "--data", "--weights", "--preset", "--out", "--steps", "--epochs", "--batch", "--lr", "--lora"),
    *("--precision", "--device", "--seed", "--save-every", "--validate-every", "--restart", "--dry-run"),
)
GROUPS = {  # titles in --help-all, above the option that each begins with
    "caption_dropout": "what the unet and controlnet stages learn",
    "adversarial": "what the vae stage learns beside L1 and KL",
    "lora": "less to train, less to hold in memory",
    "precision": "speed, and several processes under torchrun",
    "log_every": "what is kept and shown",
}
ABOUT = (
    "Train one stage of latent diffusion; RUN/model.safetensors is the result. The same command again goes on where "
    "the last one ended; --restart begins anew. The paper gives no hyper-parameters: the defaults are ours, after the "
    "field's."
)
EXAMPLES = (
    """\
Examples: the denoiser of SD 1.5 on BUSI; a LoRA of it; a ControlNet
  python train.py unet --weights sd15.safetensors --data BUSI --steps 15000 \\
      --out runs/unet
  python train.py unet --weights sd15.safetensors --data BUSI --epochs 20 \\
      --lora 8 --lr 1e-4 --device cuda --out runs/lora
  python train.py controlnet --weights runs/unet/model.safetensors --data BUSI \\
      --epochs 20 --out runs/controlnet

"""
    + EXIT_CODES
)
PAIRS = {"steps": "epochs"}  # one of each must be given


def parse_options(argv: list[str] | None = None) -> TrainOptions:
    """Read the command line; raise ValueError for numbers that make no sense and options that do not go together."""
    values = vars(short_usage(build_parser()).parse_args(argv))
    values |= {"device": local_device(values["device"]), "processes": process_count()}
    gpu = values["device"].startswith("cuda")
    defaults = {
        "cache": values["out"].parent / "cache",
        "workers": 2 if gpu else 0,
        "channels_last": gpu and not values["shard"],
        "caption_dropout": usual_dropout(values["stage"], None if values["restart"] else values["out"]),
        "aspect": usual_aspect(None if values["restart"] else values["out"]),
    }
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    options = TrainOptions(**given)
    check_options(options)
    return options


def usual_dropout(stage: str, run: Path | None) -> float:
    """The share of empty prompts unless told otherwise. A run begun with what was usual before keeps that."""
    begun = None if run is None else read_config(run / "config.json")
    if begun is not None and begun.get("caption_dropout") == CAPTION_DROPOUT["unet"]:
        return CAPTION_DROPOUT["unet"]
    return CAPTION_DROPOUT[stage]


def usual_aspect(run: Path | None) -> str:
    """How images come into a size unless told otherwise: as always before there were others, where a run is older."""
    begun = None if run is None else read_config(run / "config.json")
    return "squash" if begun is not None and "aspect" not in begun else ASPECTS[0]


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a run; None where there is none, or one of another program."""
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return config if isinstance(config, dict) and "data_sha256" in config else None


def build_parser() -> argparse.ArgumentParser:
    """Describe train.py's command line."""
    parser = argparse.ArgumentParser(prog="train.py", description=ABOUT, epilog=EXAMPLES, add_help=False)
    add_two_helps(parser, EVERY_DAY)
    parser.add_argument("stage", choices=STAGES, help="autoencoder, denoiser, or ControlNet on masks")
    group: Any = parser
    for one in fields(TrainOptions):
        if one.name in GROUPS:
            group = parser.add_argument_group(GROUPS[one.name])
        if one.name in PAIRS:
            pair = parser.add_mutually_exclusive_group(required=True)
        if one.metadata:
            add_option(pair if one.name in {*PAIRS, *PAIRS.values()} else group, one)
    return parser


def add_option(group: Any, one: Field) -> None:
    """Add the option of a field: its type is that of the field, or of what that holds."""
    about, kind = one.metadata, one.type
    shared = {"help": about["help"], "required": about["default"] is ...}
    if kind in (bool, bool | None):
        action: Any = "store_true" if about["default"] is False else argparse.BooleanOptionalAction  # has a --no-
        group.add_argument(flag(one.name), action=action, default=about["default"], **shared)
        return
    many = "+" if "tuple" in str(kind) else None
    while get_args(kind):  # float of tuple[float, ...] | None
        kind = get_args(kind)[0]
    default = None if about["default"] is ... else about["default"]
    shared |= {"metavar": about["metavar"], "choices": about["among"] or None}
    group.add_argument(flag(one.name), type=kind, nargs=many, default=default, **shared)
