"""Is it faster than diffusers? Both sides on the same random weights of SD 1.5's size, in alternation. make bench.

    python -m bench.speed --quick                        # 256x256, few repeats: about ten minutes on two cores
    python -m bench.speed --dtype float32 bfloat16       # 512x512, everything: hours on a CPU
    python -m bench.speed --only networks samples --device cuda --dtype bfloat16 --compile
    python -m bench.speed --table                        # the table again, of what --out holds

A ratio is the median of the rounds' ratios, ours / diffusers, whose two calls followed each other; its spread is the
smallest and the largest. The floor is what this machine needs at least: FLOP over the rate of a large product, or bytes
of weights over the rate of a copy. Bars hold on the ratio. A miss is a figure, not an error.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # bench and tests are not installed

from bench.speed.command_line import GROUPS, build_parser
from ldm_us.runtime.command_line import answer_at_once

answer_at_once(__name__, build_parser)

import torch

from bench.machine import load, machine
from bench.parity import PACKAGES, export, fill_model, quiet
from bench.speed.measuring import measured_rates
from bench.speed.page import page
from bench.speed.settings import Settings, settings_of
from bench.speed.table import Row, table
from bench.speed.turns import (
    PartError,
    conversion_rows,
    epoch_rows,
    measured_here,
    sample_rows,
    start_rows,
    training_rows,
)
from ldm_us.config import PRESETS
from ldm_us.files.atomic import write_text
from ldm_us.runtime.checks import check_device, check_extra
from ldm_us.runtime.entry import note, run_command

EAGER = ("epoch", "start", "conversion")  # measured without --compile alone
NEEDED = (*PACKAGES, "peft")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what --out does not hold yet, and print the table of all that it holds."""
    options = build_parser().parse_args(argv)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folder = (options.out / options.preset).resolve()
    weights, theirs = folder / "filled.safetensors", folder / "diffusers"
    settings = settings_of(options, weights, theirs, options.threads or cores)
    if not options.table:
        check_extra("bench", *NEEDED)
        check_device(options.device)
        quiet()
        torch.set_num_threads(settings.threads)
        write_weights(options.preset, weights, theirs)
        for dtype, group in product(options.dtype, options.only or GROUPS):
            result = options.out / f"{group}_{dtype}{'_compiled' * options.compile}.json"
            once = (options.compile and group in EAGER) or (group == "conversion" and dtype != options.dtype[0])
            if not once and (options.overwrite or not result.exists()):
                measure(group, replace(settings, dtype=dtype), result, sys.argv[1:] if argv is None else argv)
    print(page(options.out))
    return 0


def write_weights(preset: str, weights: Path, theirs: Path) -> None:
    """Write the weights of both sides, where they are not there: each is a function of the tensor's name."""
    weights.parent.mkdir(parents=True, exist_ok=True)
    if not weights.exists():
        print(f"writing {weights}", flush=True)
        fill_model(PRESETS[preset], weights)
    if not theirs.exists():
        export(weights, theirs, "diffusers")


def rows_of(group: str, settings: Settings) -> Iterator[Row]:
    """The rows of a group, as they are measured."""
    if group == "networks":
        return measured_here(group, settings)
    measured = {
        "training": training_rows,
        "epoch": epoch_rows,
        "samples": sample_rows,
        "start": start_rows,
        "conversion": conversion_rows,
    }
    return measured[group](settings)


def measure(group: str, settings: Settings, result: Path, arguments: Sequence[str]) -> None:
    """Measure a group and write its file; one that fails says so and leaves none."""
    before, started = load(), time.time()
    try:
        rows = list(rows_of(group, settings))
    except PartError as error:
        note(f"{group}, {settings.dtype}: {error}. It is not in the table.")
        return
    written = {
        "group": group,
        "command": shlex.join(["python", "-m", "bench.speed", *arguments]),
        "machine": machine(settings.device),
        "device": settings.device,
        "versions": {package: version(package) for package in ("torch", *NEEDED)},
        "settings": json.loads(settings.to_json())
        | {"weights": settings.weights.parent.name, "folder": "", "scratch": ""},
        "load": [before, load()],
        "seconds": time.time() - started,
        "rates": measured_rates(settings)._asdict(),
        "rows": [asdict(row) for row in rows],
    }
    write_text(result, json.dumps(written, indent=1) + "\n")
    print(table(rows, ()), flush=True)
    print(f"{group}, {settings.dtype}: {written['seconds']:.0f} s\n", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
