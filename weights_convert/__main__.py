"""Command line: python -m weights_convert import SRC --out FILE, export FILE --format FORMAT --out DST, audit SRC."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_us.config import PREDICTIONS, PRESETS
from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import add_command, describe

AUDITED = """exit codes: 0 all is right
1 a tensor is missing, unknown, of another shape, NaN or above 65504 (the largest of fp16); all such are listed
2 SRC cannot be read, or is of another kind of model"""


def build_parser() -> argparse.ArgumentParser:
    """Describe import, export and audit."""
    parser = argparse.ArgumentParser(prog="python -m weights_convert")
    example = "v1-5-pruned-emaonly.safetensors --out sd15.safetensors"
    describe(parser, "Weights in and out of ldm_us. COMMAND --help describes each.", f"import {example}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lora = "--lora speckle.safetensors --base sd15.safetensors --out lora.safetensors"
    command = add_command(commands, "import", "Original weights -> a model file, tensor by tensor.", example, lora)
    add = command.add_argument
    add("src", type=Path, nargs="?", metavar="SRC", help="a file of weights or a diffusers folder")
    add("--lora", type=Path, metavar="LORA", help="in place of SRC: a LoRA (kohya, diffusers, PEFT)")
    add("--embedding", type=Path, metavar="EMB", help="in place of SRC: a textual inversion")
    add("--base", type=Path, metavar="MODEL", help="--lora, --embedding: a model file of their sizes")
    add("--controlnet", type=Path, metavar="SRC2", help="take the ControlNet from here")
    add("--text", type=Path, metavar="SRC3", help="take the text encoder from here")
    add("--vae", type=Path, metavar="SRC4", help="take the autoencoder from here")
    add_shared(command, writes="FILE")

    about = "A model file -> files of other programs. They carry its metadata, so that import gets all of it back."
    webui = "model.safetensors --format compvis --out webui.safetensors"
    lora = "lora.safetensors --format lora --names kohya --out webui_lora.safetensors"
    command = add_command(commands, "export", about, webui, lora)
    add = command.add_argument
    add("file", type=Path, metavar="FILE", help="a model file, of train.py or of import, or a LoRA of train.py")
    about = (
        "compvis: a file for A1111, ComfyUI and Forge, and a .yaml where SD 1.5's does not hold; diffusers: a folder "
    )
    about += "for from_pretrained, ControlNet included; controlnet: a file as lllyasviel's; lora: a file, with --names"
    add("--format", choices=("compvis", "diffusers", "controlnet", "lora"), required=True, help=about)
    add("--names", choices=("diffusers", "kohya"), help="--format lora: for diffusers, or for A1111, ComfyUI, Forge")
    add_shared(command, writes="DST")

    about = "What is in a file of weights. Every tensor is checked against the architecture: place, bytes, numbers. "
    about += "Printed are totals, problems and drift by block; --html and --csv have a row a tensor."
    drift = "tuned.ckpt --against sd15.safetensors --html drift.html"
    command = add_command(commands, "audit", about, "sd15.safetensors", drift, codes=AUDITED)
    add = command.add_argument
    add("src", type=Path, metavar="SRC", help="anything that import reads, LoRAs included")
    add("--against", type=Path, metavar="OTHER", help="measure the drift of every tensor from OTHER")
    add("--html", type=Path, metavar="FILE", help="write one page with all tables and charts")
    add("--csv", type=Path, metavar="FILE", help="write the table, key by key")
    add("--overwrite", action="store_true", help="replace the files of --html and --csv")
    add_shared(command)
    return short_usage(parser)


def add_shared(command: argparse.ArgumentParser, writes: str = "") -> None:
    """Add how SRC is read, and what is written: an export reads what the model file says."""
    add = command.add_argument
    if writes != "DST":
        add("--preset", choices=PRESETS, help="sizes of the model (sd15; a model file brings its own)")
        add("--prediction", choices=PREDICTIONS, help="what the UNet predicts (as the files say, else eps)")
        add("--ema", action="store_true", help="take the moving average of SRC's UNet (model_ema.*)")
    if writes:
        add("--dtype", choices=("fp32", "fp16", "bf16"), help="type of the numbers written (as they are)")
        add("--out", type=Path, required=True, metavar=writes, help="the .safetensors file, or folder, to write")
        add("--overwrite", action="store_true", help=f"replace {writes} if it exists")


answer_at_once(__name__, build_parser)

from ldm_us.runtime.entry import NOTHING_WRITTEN, run_command
from weights_convert.audit.command import run_audit
from weights_convert.export_command import run_export
from weights_convert.import_command import run_import


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    args = build_parser().parse_args(argv)
    run: Any = {"import": run_import, "export": run_export, "audit": run_audit}[args.command]
    return int(run(args) or 0)  # an audit returns 1 for what does not fit


if __name__ == "__main__":
    sys.exit(run_command(main, NOTHING_WRITTEN))
