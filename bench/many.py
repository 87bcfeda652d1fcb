"""What more data cost: the start of a training, its memory and its waiting for data, by images and processes.

    python bench/many.py --images 1000 10000 --processes 1 2
    python bench/many.py --images 1000 --code ../older_checkout        # the same of another version

Images are small and made up, in BUSI's layout, and latents are computed of those alone that the few steps see. The
first row of a training starts from nothing, the second where the first has left its cache. Processor time tells more
than the time on the clock where other work runs beside it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/many.py")
    about = "What more data cost: the start of a training, its memory and its waiting for data, by images and "
    about += "processes. Images are small and made up. Prints a table; nothing is written."
    describe(parser, about, "--images 1000 10000 --processes 1 2")
    parser.add_argument("--images", type=int, nargs="+", default=[1000], metavar="N", help="images (%(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], metavar="P", help="of torchrun (%(default)s)")
    parser.add_argument("--code", type=Path, default=ROOT, metavar="DIR", help="checkout that is measured (this one)")
    parser.add_argument("--starts", type=int, default=2, choices=[1, 2], help="1: not with a filled cache")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

import numpy as np
from PIL import Image

SIDE, STEPS, BATCH = 64, 20, 8
MEBIBYTE = 2**20


class Measured(NamedTuple):
    """One training, from its command to its last step."""

    start: float  # seconds to the end of the first step
    busy: float  # seconds of processor time until then, of all processes
    memory: float  # bytes of all processes that no other process shares, at most
    waited: float  # seconds for data, of a step


def main() -> None:
    """Print a table."""
    options = build_parser().parse_args()
    print("| images | processes | cache | start, s | processors, s | own memory of each, MiB | waiting, ms a step |")
    print("|---|---|---|---|---|---|---|")
    for n in options.images:
        with tempfile.TemporaryDirectory() as folder:
            data = make_images(Path(folder) / "data", n)
            time.sleep(3)  # a file that has just been written is hashed every time
            for processes in options.processes:
                for i, cache in enumerate(("none", "filled")[: options.starts]):
                    out = Path(folder) / f"{processes}" / f"run{i}"
                    found = measured(options.code.resolve(), data, out, processes)
                    memory, waited = found.memory / processes / MEBIBYTE, 1000 * found.waited
                    times = f"{found.start:.1f} | {found.busy:.1f}"
                    print(f"| {n:,} | {processes} | {cache} | {times} | {memory:.0f} | {waited:.1f} |", flush=True)


def make_images(root: Path, n: int) -> Path:
    """Blobs, each with a mask, in folders of 64x64 pixels."""
    generator = np.random.default_rng(0)
    (root / "benign").mkdir(parents=True)
    for i in range(1, n + 1):
        blobs = Image.fromarray(generator.integers(0, 256, (20, 20), dtype=np.uint8))
        blobs.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(root / "benign" / f"benign ({10000 + i}).png")
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = generator.integers(4, SIDE - 24, 2)
        mask[top : top + 20, left : left + generator.integers(4, 20)] = 255
        Image.fromarray(mask).save(root / "benign" / f"benign ({10000 + i})_mask.png")
    return root


def measured(code: Path, data: Path, out: Path, processes: int) -> Measured:
    """Train until the log has STEPS lines, and look at the processes meanwhile."""
    start = [sys.executable]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        "train.py",
        "unet",
        "--preset",
        "tiny",
        "--size",
        SIDE,
        "--data",
        data,
        "--out",
        out,
        "--steps",
        STEPS + 5,
    ]
    command += ["--batch", BATCH, "--log-every", 1, "--sample-every", 0, "--validate-every", 0, "--held-out", 0.1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    out.parent.mkdir(exist_ok=True)
    began, first, memory, busy = time.perf_counter(), None, 0.0, 0.0
    with open(out.parent / f"{out.name}.said", "wb") as said:
        training = subprocess.Popen([*start, *map(str, command)], cwd=code, env=environment, stdout=said, stderr=said)
        lines: list[str] = []
        while len(lines) < STEPS and training.poll() is None:
            time.sleep(0.1)
            looked = list(look(out))
            memory = max(memory, sum(one for one, _ in looked))
            log = out / "log.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            if lines and first is None:
                first, busy = time.perf_counter() - began, sum(seconds for _, seconds in looked)
        if first is None:
            sys.exit(f"the training has failed: {Path(said.name).read_text()}")
        if training.poll() is None:
            training.send_signal(signal.SIGTERM)  # torchrun ends its processes too
        training.wait()
    steps = [json.loads(line) for line in lines[1:]]
    waited = sorted(line["data_share"] * BATCH / line["images_per_s"] for line in steps)
    return Measured(first, busy, memory, waited[len(waited) // 2])


def look(out: Path) -> Iterator[tuple[int, float]]:
    """Of each process that trains into this folder: bytes without what it maps from files, and processor seconds."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and b"train.py" in words[1:3]:  # torchrun itself has it further on
                rollup = (process / "smaps_rollup").read_text()
                own = next(1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))
                ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
                yield own, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        except OSError:  # it has just ended
            continue


if __name__ == "__main__":
    main()
