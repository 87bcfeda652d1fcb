"""Is it faster than diffusers? Both sides on the same random weights of SD 1.5's size, in alternation. make bench.

    python -m bench.speed --quick                        # 256x256, few repeats: about ten minutes on two cores
    python -m bench.speed --dtype float32 bfloat16       # 512x512, everything: hours on a CPU
    python -m bench.speed --only networks samples --device cuda --dtype bfloat16 --compile
    python -m bench.speed --table                        # the table again, of what --out holds

Each group (networks, samples, training, epoch, memory, start, conversion) writes a file of JSON into --out, and one that
is there is not measured again, so that the same command goes on where it was stopped; --again measures all that was
asked for. A ratio is the median of the rounds' ratios, ours / diffusers, whose two calls followed each other; its spread
is the smallest and the largest. The floor is what this machine needs at least: FLOP over the rate of a large product,
or bytes of weights over the rate of a copy. Bars hold on the ratio. A miss is a figure, not an error.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # bench and tests are not installed

import torch

from bench.parity import PACKAGES, export, fill_model, quiet
from bench.speed.measuring import load, machine, measured_rates
from bench.speed.settings import Settings
from bench.speed.table import Row, bars_for, differences, paper_minutes, table
from bench.speed.turns import (
    Failed,
    conversion_rows,
    epoch_rows,
    measured_here,
    sample_memory_rows,
    start_rows,
    training_rows,
)
from ldm_us.config import PRESETS
from ldm_us.files.atomic import write_text
from ldm_us.runtime.checks import check_device, check_extra
from ldm_us.runtime.entry import run_command

GROUPS = ("networks", "samples", "training", "epoch", "memory", "start", "conversion")
DTYPES = ("float32", "bfloat16", "float16")
FLOAT32_ONLY = ("conversion",)
QUICK = {"size": 256, "rounds": 3, "steps": (8,), "sample_rounds": 1, "turns": 1, "turn_rounds": 2, "images": 6}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what --out does not hold yet, and print the table of all that it holds."""
    options = parse(argv)
    if not options.table:
        check_extra("bench", *PACKAGES, "peft")
        check_device(options.device)
        quiet()
        settings = prepared(options)
        groups = options.only or GROUPS
        for dtype, group in product(options.dtype, groups):
            result = options.out / f"{group}_{dtype}{'_compiled' * options.compile}.json"
            only_float = group in FLOAT32_ONLY and (dtype != "float32" or options.compile)
            if not only_float and (options.again or not result.exists()):
                measure(group, replace(settings, dtype=dtype), result, options)
    print(page(options.out))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=f"of {', '.join(GROUPS)} (all)")
    parser.add_argument("--quick", action="store_true", help="256x256, few repeats")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile both sides' denoisers")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="sd15", help="size of the networks (%(default)s)")
    parser.add_argument("--size", type=int, metavar="N", help="pixels of a side (512, quick 256)")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="batches of the UNet (1 2 8, quick 1 2)")
    parser.add_argument("--training-batch", type=int, nargs="+", metavar="N", help="batches of its training (1 4)")
    parser.add_argument("--epoch-batch", type=int, default=1, metavar="N", help="batch of the epoch (%(default)s)")
    parser.add_argument("--images", type=int, metavar="N", help="images of the epoch (32, quick 6)")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="steps of whole samples (20 50, quick 8)")
    parser.add_argument("--rounds", type=int, metavar="N", help="timed calls of a network (5, quick 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of a CPU (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench", metavar="DIR", help="results and weights")
    parser.add_argument("--again", action="store_true", help="measure what --out holds already, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser.parse_args(argv)


def prepared(options: argparse.Namespace) -> Settings:
    """The settings, and the weights for both sides, which are written once for each preset."""
    torch.set_num_threads(options.threads)
    folder = options.out / options.preset
    folder.mkdir(parents=True, exist_ok=True)
    weights, theirs = folder / "filled.safetensors", folder / "diffusers"
    if not weights.exists():
        print(f"writing {weights}", flush=True)
        fill_model(PRESETS[options.preset], weights)
    if not (theirs / "model_index.json").exists():
        export(weights, theirs, "diffusers")
    settings = Settings(weights.resolve(), theirs.resolve(), folder.resolve(), options.device, threads=options.threads)
    given: dict[str, Any] = {
        "size": options.size,
        "batches": options.batch,
        "training_batches": options.training_batch,
        "images": options.images,
        "steps": options.steps,
        "rounds": options.rounds,
    }
    quick = QUICK | {"batches": (1, 2), "training_batches": (1,)} if options.quick else {}
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value}
    fixed = {"epoch_batch": options.epoch_batch, "compiled": options.compile}
    return replace(settings, **(quick | own | fixed))


def rows_of(group: str, settings: Settings) -> Iterator[Row]:
    """The rows of a group, as they are measured."""
    if group in ("networks", "samples"):
        return measured_here(group, settings)
    measured = {
        "training": training_rows,
        "epoch": epoch_rows,
        "memory": sample_memory_rows,
        "start": start_rows,
        "conversion": conversion_rows,
    }
    return measured[group](settings)


def measure(group: str, settings: Settings, result: Path, options: argparse.Namespace) -> None:
    """Measure a group and write its file; one that fails says so and leaves none."""
    before, started = load(), time.time()
    try:
        rows = list(rows_of(group, settings))
    except Failed as error:
        print(f"{group}, {settings.dtype}: {error}", file=sys.stderr)
        return
    rates = measured_rates(settings.device, settings.torch_dtype)
    written = {
        "group": group,
        "command": shlex.join(["python", "-m", "bench.speed", *sys.argv[1:]]),
        "machine": machine(settings.device),
        "device": settings.device,
        "versions": {package: version(package) for package in ("torch", *PACKAGES, "peft")},
        "settings": json.loads(settings.to_json()) | {"weights": settings.weights.name, "folder": "", "scratch": ""},
        "load": [before, load()],
        "seconds": time.time() - started,
        "rates": rates._asdict(),
        "rows": [asdict(row) for row in rows],
    }
    write_text(result, json.dumps(written, indent=1) + "\n")
    print(table(rows, ()), flush=True)
    print(f"{group}, {settings.dtype}: {time.time() - started:.0f} s\n", flush=True)


def page(out: Path) -> str:
    """All results of a folder as Markdown, with the commands and the machine."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    if not results:
        return f"{out}: nothing is measured yet."
    results.sort(key=lambda result: (result["device"], GROUPS.index(result["group"]), result["settings"]["dtype"]))
    rows = [Row(**row) for result in results for row in result["rows"]]
    loads = [value for result in results for value in result["load"]]
    minutes = paper_minutes(rows)
    lines = [
        *(f"    {command}" for command in dict.fromkeys(result["command"] for result in results)),
        "",
        f"{results[0]['machine']}; {', '.join(f'{name} {number}' for name, number in results[0]['versions'].items())}.",
        f"Load while it was measured: {min(loads):.1f} to {max(loads):.1f}; {sum(r['seconds'] for r in results):.0f} s.",
        *dict.fromkeys(rates_line(result) for result in results if result["group"] == "networks"),
        "",
        table(rows, bars_for(results[0]["device"])),
        "",
        differences(rows),
    ]
    if minutes is not None:
        lines.append(f"The paper's training by these steps, 100 epochs of 617 images twice: {minutes:.0f} minutes.")
    return "\n".join(lines).rstrip()


def rates_line(result: dict[str, Any]) -> str:
    """The machine's best, and the size that was measured."""
    settings, rates = result["settings"], result["rates"]
    return (
        f"{settings['dtype']}: {settings['size']}x{settings['size']} pixels, {settings['threads']} threads, "
        f"matrix product {rates['matrix'] / 1e9:.0f} GFLOP/s, copy {rates['copy'] / 1e9:.1f} GB/s."
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
