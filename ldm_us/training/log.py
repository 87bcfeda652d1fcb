"""RUN/log.jsonl, a line every few steps; and RUN/tensorboard, the same for TensorBoard, which is an extra."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_us.files.atomic import atomic_file
from ldm_us.runtime.processes import ALONE, World


class Log:
    """The log of a run, each value the mean since the line before. Process 0 alone writes it."""

    def __init__(self, run: Path, step: int, world: World = ALONE, tensorboard: bool = False):
        """Go on with the log. TensorBoard is sent all of it again, and hides what it was sent before.

        So its curves are those of log.jsonl, whatever a killed run had queued or sent too much; only the wall time of
        the old points is then that of the resume.
        """
        self.path, self.step, self.world = run / "log.jsonl", step, world
        self.begin_line()
        self.writer: Any = None
        if tensorboard and world.main:
            self.writer = summary_writer()(str(run / "tensorboard"), purge_step=0)
            for line in read_lines(self.path):
                self.send(line)

    def begin_line(self) -> None:
        """Forget what the last line has told."""
        self.sums: dict[str, Tensor | float] = {}
        self.count = self.images = 0
        self.seconds = self.waited = 0.0

    def add(self, step: int, values: dict[str, Tensor | float], images: int, begun: float, waited: float) -> None:
        """Take in what a step gave, scalars that stay on their device; when it began, and waited for data, in s."""
        self.step, self.added = step, time.perf_counter()
        self.count, self.images = self.count + 1, self.images + images
        self.seconds, self.waited = self.seconds + self.added - begun, self.waited + waited
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def line(self) -> dict[str, float]:
        """The next line: means since the last one, of all processes. It waits for the device."""
        on_device = {name: total for name, total in self.sums.items() if isinstance(total, Tensor)}
        read = torch.stack([total.float() for total in on_device.values()]).tolist() if on_device else []
        totals = self.sums | dict(zip(on_device, read, strict=True))
        seconds = self.seconds + time.perf_counter() - self.added
        speed = {"images_per_s": self.images / seconds, "data_share": self.waited / seconds}
        means = self.world.mean({name: float(total) / self.count for name, total in totals.items()})
        self.begin_line()
        return {"step": self.step} | means | speed

    def write(self, line: dict[str, float]) -> None:
        """Add a line; an error of the disk names the log."""
        if not self.world.main:
            return
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise
        if self.writer:
            self.send(line)

    def send(self, line: dict[str, float]) -> None:
        """Give a line to TensorBoard."""
        for name in sorted(line.keys() - {"step"}):
            self.writer.add_scalar(name, line[name], int(line["step"]))

    def close(self) -> None:
        """Let TensorBoard's writer finish what it has queued."""
        if self.writer:
            self.writer.close()


def check_finite(run: Path, where: str, line: dict[str, float]) -> None:
    """Stop at a loss or gradient that is not a number, before what it did to the weights is shown or saved."""
    values = {words: line[name] for name, words in (("loss", "loss"), ("grad_norm", "gradient norm")) if name in line}
    if not all(math.isfinite(value) for value in values.values()):
        found = " and ".join(f"the {name} is {value}" for name, value in values.items())
        raise ValueError(
            f"{where}: {found}. The last saved states are in {run / 'state'}. Try a lower --lr in a new --out folder."
        )


def summary_writer() -> Any:
    """TensorBoard's SummaryWriter. Raise ValueError, naming the extra, where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard: TensorBoard is not installed. Install the extra logs, `pip install -e '.[logs]'`, or leave "
            "the option out: curves.png shows the same."
        ) from error
    return SummaryWriter


def read_lines(path: Path) -> list[dict[str, float]]:
    """The numbers in a log, line by line; a line that is not whole, and a log that is not there, are left out."""
    if not path.is_file():
        return []
    lines = (read_line(row) for row in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line]


def read_line(row: str) -> dict[str, float]:
    """The numbers of a row of the log; none where it is not whole or has no step."""
    try:
        line = json.loads(row)
    except ValueError:
        return {}
    step = line.get("step") if isinstance(line, dict) else None
    if not isinstance(step, int | float) or not math.isfinite(step):
        return {}
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of a log that lie after `step`, and one that is not whole: a resumed run writes them again."""
    if path.exists():
        rows = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [row + "\n" for row in rows if read_line(row).get("step", math.inf) <= step]
        with atomic_file(path) as file:
            file.write("".join(kept).encode())
