"""The generator's stages: the very commands that a user would type, each run once and its result remembered by hash.

A run folder that train.py has finished with the same settings is taken over: train.py itself compares them, and has
nothing left to do. stages.json says what is finished.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_us.config import MASK, config_from_dict
from ldm_us.data.masks.shape import mask_picture
from ldm_us.data.records import Record, followed, mask_tensor, union_of_masks
from ldm_us.evaluation.protocol.configuration import Options, ProtocolConfig
from ldm_us.evaluation.results import read_json
from ldm_us.files.atomic import sha256_file, write_text
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.pictures import save_png
from ldm_us.runtime.scripts import script_path
from ldm_us.synthesis.command_line import build_parser
from ldm_us.synthesis.folder import MANIFEST
from ldm_us.synthesis.options import parse_options as parse_sample_options
from ldm_us.synthesis.plan import class_counts
from ldm_us.training.command_line import parse_options

Run = Callable[[str, list[str]], None]
DONE = "stages.json"
OURS_OF_TRAIN = ("data", "held-out", "out", "restart", "dry-run")  # options that the protocol sets, or has no use for
OURS_OF_SAMPLE = (
    *("weights", "controlnet", "mask", "layout", "out", "overwrite", "class", "prompt", "info", "verify"),
    *("init", "inpaint", "invert"),
)


@dataclass(frozen=True)
class Stage:
    """One command and the file that it ends with."""

    name: str  # of its folder
    script: str  # train.py or sample.py
    arguments: tuple[str, ...]
    product: Path


def plan_stages(config: ProtocolConfig, out: Path) -> list[Stage]:
    """The commands of a protocol, in order."""
    masks: list[str] = []
    stages = [train_stage("unet", config.unet, config, config.held_out, out)]
    if config.controlnet is not None:
        masks = ["--mask", str(out / "masks")]
        options = {"weights": str(stages[-1].product)} | dict(config.controlnet)
        stages.append(train_stage("controlnet", options, config, config.held_out, out))
    stages.append(sample_stage("generated", config.sample, stages[-1].product, out, masks))
    if config.small is not None:
        stages.append(train_stage("unet_small", config.small.unet, config, config.small.held_out, out))
        stages.append(sample_stage("generated_small", config.small.sample, stages[-1].product, out, []))
    return stages


def train_stage(name: str, options: Options, config: ProtocolConfig, held_out: float, out: Path) -> Stage:
    """The command `train.py STAGE` of a table of options."""
    ours = ["--data", *config.data, "--held-out", str(held_out), "--out", str(out / name)]
    arguments = (name.removesuffix("_small"), *to_arguments(name, options, OURS_OF_TRAIN), *ours)
    return Stage(name, "train.py", arguments, out / name / "model.safetensors")


def sample_stage(name: str, options: Options, weights: Path, out: Path, masks: Sequence[str]) -> Stage:
    """The command `sample.py` of a table of options; its images lie in the layout of BUSI."""
    options = {"sampler": "ddim"} | dict(options)  # what sample.py took unless asked, when the first results were made
    ours = ["--weights", str(weights), "--layout", "busi", "--out", str(out / name), *masks]
    return Stage(name, "sample.py", (*to_arguments(name, options, OURS_OF_SAMPLE), *ours), out / name / MANIFEST)


def to_arguments(name: str, options: Options, ours: Sequence[str]) -> list[str]:
    """{"lr": 5e-4, "fast": true} -> ["--lr", "0.0005", "--fast"]. Refuse options that the protocol itself sets."""
    arguments: list[str] = []
    for option, value in options.items():
        if option.replace("_", "-") in ours:
            raise ValueError(f"{name}: the option {option} is set by the protocol. Take it out of its table.")
        arguments.append(f"--{option.replace('_', '-')}")
        if value is not True:
            arguments += [str(one) for one in (value if isinstance(value, list) else [value])]
    return arguments


def check_stages(stages: Sequence[Stage]) -> None:
    """Let train.py and sample.py refuse their options now, not after hours of the stages before."""
    for stage in stages:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):  # of argparse, which ends the process
                if stage.script == "train.py":
                    parse_options(list(stage.arguments))
                else:
                    parse_sample_options(stage.arguments)
                    asked_samples(stage)
        except SystemExit as error:
            reason = (said.getvalue().strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"the stage {stage.name}: {reason}. Change its table of options.") from error
        except ValueError as error:
            raise ValueError(f"the stage {stage.name}: {error}") from error


def asked_samples(stage: Stage) -> tuple[Sequence[float], int | None]:
    """--balance and --n of a sample stage; unchecked: its device may be another machine's."""
    options = build_parser().parse_args(stage.arguments)
    if options.balance is None:
        raise ValueError('no "balance" says how many images of each class to sample. Add "balance": [300, 150, 100].')
    return options.balance, options.n


def wanted_samples(stage: Stage, classes: Sequence[str]) -> tuple[int, ...]:
    """How many samples of each class of the training images a stage makes."""
    balance, n = asked_samples(stage)
    try:
        return class_counts(balance, n, classes)
    except ValueError as error:
        raise ValueError(f"the stage {stage.name}: {error}") from error


def run_script(script: str, arguments: list[str]) -> None:
    """Run train.py or sample.py in a process of its own, which says what it does."""
    code = subprocess.run([sys.executable, str(script_path(script)), *arguments], check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise ValueError(f"{script} ended with exit code {code}; what it said stands above. Mend that and go on.")


def finish_stage(stage: Stage, out: Path, run: Run) -> bool:
    """Run a stage unless it is finished; -> whether it was run. Raise ValueError where its result has changed."""
    done = read_done(out)
    if stage.name in done:
        if not stage.product.is_file() or sha256_file(stage.product) != done[stage.name]["sha256"]:
            raise ValueError(
                f"{stage.product}: missing, or another file than when its stage was finished, and later stages were "
                "made from that. Put it back, or start in a new --out."
            )
        return False
    run(stage.script, list(stage.arguments))
    done[stage.name] = {
        "command": [stage.script, *stage.arguments],
        "file": str(stage.product.relative_to(out)),
        "sha256": sha256_file(stage.product),
    }
    write_text(out / DONE, json.dumps(done, indent=1) + "\n")
    return True


def read_done(out: Path) -> dict[str, Any]:
    """What stages.json says; nothing where it is not there."""
    return read_json(out / DONE, "Delete it: finished stages are found again.") or {}


def write_training_masks(records: Sequence[Record], weights: Path, folder: Path) -> int:
    """Write the lesions of training images as mask files for sample.py, named by class; -> how many.

    A lesion that no pixel is left of at the model's size is left out: sample.py would refuse it.
    """
    config = config_from_dict(json.loads(read_metadata(weights)["config"]))
    size, hint = config.image_size, config.control.hint
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for label in sorted({record.label for record in records if record.shows is not False}):
        masks = [followed(record, hint).masks for record in sorted(records) if record.label == label]
        unions = list(map(union_of_masks, masks))
        lesions = [union for union in unions if union is not None and bool(mask_tensor(union, size).any())]
        for nth, union in enumerate(lesions, start=1):
            picture = union if hint == MASK else mask_picture(np.array(union), hint)
            save_png(picture, folder / f"{label} ({nth})_mask.png")
        count += len(lesions)
    if count == 0:
        raise ValueError("data: no training image has a lesion mask for the ControlNet. Leave `controlnet` out.")
    return count
