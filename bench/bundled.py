"""How fast the embedded default is on this machine: phantoms, and samples of the bundled model from a cold start.

python bench/bundled.py [--repeats 3]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import short_usage
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.help_page import describe

PHANTOM = "from ldm_us.data.phantom.simulate import simulate; import time; n = 30; simulate(0, 0, 'benign', 128); \
t = time.perf_counter(); [simulate(0, i, ('normal', 'benign', 'malignant')[i % 3], 128) for i in range(n)]; \
print((time.perf_counter() - t) / n)"


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/bundled.py")
    about = "How fast the embedded default is on two cores of this machine: phantoms, and samples of the bundled "
    about += "model from a cold start, on the CPU. Prints JSON; nothing is written."
    describe(parser, about, "--repeats 5")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of which the median counts (%(default)s)")
    return short_usage(parser)


def main(argv: list[str] | None = None) -> int:
    """Print the median of each figure as JSON."""
    repeats = build_parser().parse_args(argv).repeats
    if hasattr(os, "sched_setaffinity"):  # two cores, which the processes started below inherit
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    weights = sum(path.stat().st_size for path in (ROOT / "ldm_us" / "weights").glob("*.safetensors"))
    figures = {
        "bundled weights, MB": round(weights / 1e6, 2),
        "phantom 128x128, ms on one core": median(repeats, lambda: 1000 * printed(PHANTOM, OPENBLAS_NUM_THREADS="1")),
        "sample.py without arguments, cold, s": median(repeats, sample_py),
        "sample.py --class benign --n 1, cold, s": median(repeats, lambda: sample_py("--class", "benign", "--n", "1")),
    }
    machine = {
        "cpus used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps({"machine": machine, "repeats": repeats} | figures, indent=2))
    return 0


def median(repeats: int, measure: Callable[[], float]) -> float:
    """The median of several measurements, rounded."""
    return round(statistics.median(measure() for _ in range(repeats)), 2)


def printed(code: str, **environment: str) -> float:
    """The number that a new Python prints."""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return float(process.stdout)


def sample_py(*arguments: str) -> float:
    """Seconds of one call of sample.py, the start of Python included."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "sample.py", "--out", f"{folder}/samples", *arguments]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(run_command(main))
