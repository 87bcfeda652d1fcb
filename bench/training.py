"""What training costs: parameters, peak memory and images per second of each method, and of the loop's options.

    python bench/training.py methods --weights sd15.safetensors --data DIR --size 512    # --device cuda, --only lora
    python bench/training.py loop --weights ldm_us/weights/us128.safetensors --data DIR

Every row is a process of its own that calls train.py; the first step, which warms up, is left out of the speed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe

WHAT = ("methods", "loop")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/training.py")
    about = "What training costs: parameters, peak memory and images per second of each method, or of the loop's "
    about += "options. Every row is a process of its own that calls train.py in a folder that is deleted; the "
    about += "first step, which warms up, is left out of the speed. Prints; nothing is kept."
    sd15 = "methods --weights sd15.safetensors --data phantoms --size 512 --device cuda --only LoRA"
    describe(parser, about, sd15, "loop --weights ldm_us/weights/us128.safetensors --data phantoms")
    add = parser.add_argument
    add("what", choices=WHAT, help="methods: rows of methods; loop: of speeds")
    add("--weights", type=Path, required=True, metavar="FILE", help="a model.safetensors")
    add("--data", type=Path, nargs="+", required=True, metavar="DIR", help="datasets")
    add("--size", type=int, metavar="PIXELS", help="side of the images (what the weights were made for)")
    add("--batch", type=int, default=1, metavar="N", help="images at a time (%(default)s)")
    add("--steps", type=int, default=3, metavar="N", help="of training (%(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of methods (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the training (%(default)s)")
    add("--device", default="cpu", help="of the training: cpu, cuda, cuda:1 (%(default)s)")
    add("--only", metavar="TEXT", help="rows whose name holds this text")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from bench.machine import machine
from ldm_us.runtime.checks import check_words
from ldm_us.runtime.entry import run_command

METHODS = {  # name: (stage, options)
    "full": ("unet", ""),
    "full, adafactor, no EMA, checkpointing": ("unet", "--optimizer adafactor --ema 0 --gradient-checkpointing"),
    "LoRA rank 8": ("unet", "--lora 8"),
    "LoRA rank 8, checkpointing": ("unet", "--lora 8 --gradient-checkpointing"),
    "8 prompt tokens": ("unet", "--prompt-tokens 8"),
    "ControlNet": ("controlnet", ""),
    "ControlNet, decoder unlocked": ("controlnet", "--unlock-decoder"),
}
LOOP = {
    "fp32": "--no-channels-last",
    "fp32, channels last": "--channels-last",
    "bf16": "--no-channels-last --precision bf16",
    "bf16, channels last": "--channels-last --precision bf16",
    "fp32, compile": "--no-channels-last --compile",
    "fp32, 1 worker": "--no-channels-last --workers 1",
}
CHILD = """
import json, sys, train
from bench.machine import peak_memory
code = train.main(sys.argv[2:])
print(json.dumps({"peak": peak_memory(sys.argv[1])}))
sys.exit(code)
"""


def main(argv: list[str] | None = None) -> int:
    """Print a table in Markdown."""
    options = build_parser().parse_args(argv)
    check_words(vars(options))
    print(f"{machine(options.device)}; batch {options.batch}, {options.steps} steps\n")
    rows = METHODS if options.what == "methods" else {name: ("unet", flags) for name, flags in LOOP.items()}
    print("| what | trained parameters | peak memory, GiB | images/s | waiting for data |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for name, (stage, flags) in rows.items():
            if options.only is None or options.only in name:
                precision = ["--precision", options.precision] if options.what == "methods" else []
                print(row(options, Path(folder), name, stage, [*flags.split(), *precision]), flush=True)
    return 0


def row(options: argparse.Namespace, folder: Path, name: str, stage: str, flags: list[str]) -> str:
    """Train for a few steps; a row of the table. The run is deleted: a state of SD 1.5 takes 10 GB."""
    run = folder / "run"
    command = [stage, "--weights", options.weights, "--data", *options.data, "--out", run, "--cache", folder / "cache"]
    command += ["--steps", options.steps, "--batch", options.batch, "--seed", options.seed, "--device", options.device]
    command += ["--log-every", 1, "--sample-every", 0, "--validate-every", 0, "--held-out", 0, *flags]
    command += ["--size", options.size] if options.size else []
    argv = [sys.executable, "-c", CHILD, options.device, *map(str, command)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"| {name} | failed: {done.stderr.strip().splitlines()[-1]} | | | |"
    trained = next(line for line in done.stdout.splitlines() if "parameters trained" in line).split("; ")[1].split()[0]
    peak = json.loads(done.stdout.splitlines()[-1])["peak"] / 2**30
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()][1:]
    speed = statistics.median(line["images_per_s"] for line in lines)
    share = statistics.median(line["data_share"] for line in lines)
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.rmdir()
    return f"| {name} | {trained} | {peak:.1f} | {speed:.3g} | {share:.1%} |"


if __name__ == "__main__":
    sys.exit(run_command(main))
