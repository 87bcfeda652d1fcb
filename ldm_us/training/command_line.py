"""The command line of train.py: an option for every field of TrainOptions, and which of them go together.

Nothing here waits for PyTorch.
"""

import argparse
import json
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from ldm_us.config import ASPECTS
from ldm_us.runtime.checks import check_device, check_seed
from ldm_us.runtime.command_line import EXIT_CODES, add_two_helps, short_usage
from ldm_us.runtime.processes import local_device, process_count
from ldm_us.training.options import ANY, CAPTION_DROPOUT, FIRST_STAGE, STAGES, TrainOptions, flag

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
    values["lr_schedule"] = values["lr_schedule"] if values["lr_schedule"] != "constant" else None  # as in old runs
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


def check_options(options: TrainOptions) -> None:
    """Raise ValueError for numbers that make no sense and options that do not go together."""
    for one in fields(options):
        value = getattr(options, one.name)
        words, holds = one.metadata.get("bound", ANY)
        if value is not None and not holds(value):
            raise ValueError(f"{flag(one.name)} {value}: use {words}.")
    check_adapter(options)
    check_together(options)
    check_seed(options.seed)
    check_device(options.device, options.precision)
    if options.batch % options.processes:
        raise ValueError(
            f"--batch {options.batch}: {options.processes} processes share it. Use a multiple of {options.processes}."
        )
    if options.tensorboard:
        from ldm_us.training.log import summary_writer  # torch takes seconds: a command line is read before

        summary_writer()
    if options.data_weights is not None:
        from ldm_us.data.mixing import check_weights

        check_weights([1] * len(options.data), options.data_weights)


def check_adapter(options: TrainOptions) -> None:
    """Refuse LoRA and prompt tuning where they have nothing to work on, or what cannot be combined with them."""
    if options.lora is not None and options.stage == "vae":
        raise ValueError("--lora belongs to the unet and controlnet stages; --decoder-only is what the vae stage has.")
    for name in ("lora_alpha", "lora_targets"):
        if options.lora is None and getattr(options, name) is not None:
            raise ValueError(f"{flag(name)} belongs to a LoRA: add --lora RANK.")
    if options.prompt_tokens and options.train_text:
        raise ValueError("--prompt-tokens keeps the text encoder as it is: leave --train-text away.")
    if options.adapter is None:  # raises for a rank or an alpha that makes no sense
        return
    for name in ("shard", "unlock_decoder"):
        if getattr(options, name):
            raise ValueError(f"{flag(name)} trains whole weights: leave --lora and --prompt-tokens away, or it.")
    if options.preset is not None:
        raise ValueError("--lora and --prompt-tokens adapt a trained model: give --weights instead of --preset.")


def check_together(options: TrainOptions) -> None:
    """Refuse options of another stage, and those that need another option."""
    if options.weights is None and options.preset is None:
        raise ValueError("nothing to start from: give --weights FILE, or random weights by --preset NAME.")
    if options.weights is not None and options.preset is not None and options.stage == "vae":
        raise ValueError("--weights with --preset makes a denoiser or a ControlNet new: the vae stage has neither.")
    of_stage = {"train_text": "unet", "prompt_tokens": "unet", "decoder_only": "vae", "unlock_decoder": "controlnet"}
    of_stage |= dict.fromkeys(FIRST_STAGE, "vae")
    for name, stage in of_stage.items():
        if getattr(options, name) and options.stage != stage:
            raise ValueError(f"{flag(name)} belongs to the {stage} stage, not to {options.stage}.")
    for name in ("objective", "min_snr", "offset_noise", "captions", "long_prompts"):
        if getattr(options, name) and options.stage == "vae":
            raise ValueError(
                f"{flag(name)} belongs to the unet and controlnet stages: the vae stage predicts no noise from words."
            )
    for name, term in (("adversarial_start", "adversarial"), ("perceptual_network", "perceptual")):
        if getattr(options, name) is not None and getattr(options, term) is None:
            raise ValueError(f"{flag(name)} belongs to a term of the loss: add {flag(term)} X.")
    if options.adversarial is not None and options.compile:
        raise ValueError("--adversarial needs gradients from within the decoder: leave --compile away.")
    if options.text_lr is not None and (not options.trains_text or options.shard):
        raise ValueError(f"--text-lr {options.text_lr:g} needs --train-text or --prompt-tokens, and not --shard.")
    if options.keep_every and (options.stage == "vae" or options.shard):
        raise ValueError("--keep-every belongs to the unet and controlnet stages, and does not go with --shard.")
    if options.precision == "fp16" and options.stage == "vae":
        raise ValueError("--precision fp16: the vae stage needs numbers beyond its range. Use bf16 or fp32.")
    if options.text_warmup and (not options.train_text or options.lora):
        raise ValueError(f"--text-warmup {options.text_warmup} trains the whole text encoder: add --train-text alone.")
    if options.decoder_only and options.weights is None:
        raise ValueError("--decoder-only keeps the encoder of --weights, and a random one is no use: leave it away.")
    if len({folder.resolve() for folder in options.data}) < len(options.data):
        raise ValueError("--data names one folder twice: give each once, and --data-weights to draw it more often.")
    if not options.shard:
        return
    if options.processes == 1:
        raise ValueError("--shard splits a model over processes: start several with torchrun --nproc-per-node N.")
    if options.stage == "vae" or options.optimizer != "adamw" or options.compile or options.precision == "fp16":
        raise ValueError("--shard takes the stages unet and controlnet, --optimizer adamw, no --compile, no fp16.")
    if options.channels_last:
        raise ValueError("--shard splits weights in their usual layout: leave --channels-last away.")
