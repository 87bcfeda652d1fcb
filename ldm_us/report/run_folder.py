"""What lies in the folder of a run: configuration, log, pictures, and what the result says of where it came from."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_us.data.opening import open_image
from ldm_us.files.checkpoint import open_model_file, read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.training.command_line import read_config
from ldm_us.training.options import STAGES

SAMPLE = re.compile(r"step_(\d{8})\.png")


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it."""

    path: Path
    config: dict[str, Any]
    lines: list[dict[str, float]]  # of log.jsonl
    samples: list[tuple[int, Path]]  # (step, picture), oldest first
    ancestors: list[dict[str, Any]]  # the lineage before this run, oldest first
    result: dict[str, Any] | None  # this run's own entry in the lineage; None: there is no model.safetensors yet
    sizes: dict[str, int]  # parameters of each part of the result
    notes: list[str]  # what a reader should know: unfinished, unreadable

    @property
    def stage(self) -> str:
        """vae, unet or controlnet."""
        return str(self.config["stage"])

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def steps(self) -> int:
        """Optimiser steps: those behind the result, else those in the log."""
        return int(self.result["steps"]) if self.result is not None else int(self.lines[-1]["step"])

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The stages behind the result, oldest first."""
        return self.ancestors if self.result is None else [*self.ancestors, self.result]

    @property
    def trained_parts(self) -> list[str]:
        """The parts of the model that the run trains; all others stay as they were."""
        return ["unet", "text"] if self.config.get("train_text") else [self.stage]


def read_run(path: Path) -> Run:
    """Read a run's folder. Raise ValueError where there is no run or no log; an unfinished one gets notes."""
    if not path.is_dir():
        problem = "is a file, not the folder of a run" if path.exists() else "no such folder"
        raise ValueError(f"{path}: {problem}. Give the --out folder of train.py.")
    config = read_config(path / "config.json")
    if config is None or config.get("stage") not in STAGES:
        raise ValueError(f"{path}: no config.json of train.py in it. Give the --out folder of train.py.")
    lines = read_log(path / "log.jsonl")
    found = ((SAMPLE.fullmatch(picture.name), picture) for picture in sorted((path / "samples").glob("step_*.png")))
    samples = [(int(match[1]), picture) for match, picture in found if match is not None]
    entries, sizes, notes = read_result(path / "model.safetensors")
    if not entries:
        return Run(path, config, lines, samples, ancestors_in(config.get("weights")), None, {}, notes)
    newest = int(lines[-1]["step"])
    if newest != entries[-1].get("steps"):
        notes.append(
            f"not finished: the log goes to step {newest:,}, and model.safetensors is that of step "
            f"{entries[-1].get('steps'):,}. The samples below are made with it."
        )
    return Run(path, config, lines, samples, entries[:-1], entries[-1], sizes, notes)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of log.jsonl, in order. A torn last line, of a run that is being written, is left out."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file. The run has logged nothing yet; train longer, or give another run.")
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines: list[dict[str, float]] = []
    rows = [row for row in text.split("\n") if row.strip()]
    for i, row in enumerate(rows):
        try:
            line = json.loads(row)
        except ValueError:
            line = None
        if is_line(line):
            lines.append(line)
        elif i < len(rows) - 1 or text.endswith("\n"):
            raise ValueError(
                f"{path}: line {i + 1} is damaged ({row[:40]!r}). Resume the run: that drops damaged lines."
            )
    if not lines:
        raise ValueError(f"{path}: no whole line in it. The run has logged nothing yet; train longer.")
    return lines


def is_line(line: Any) -> bool:
    """Numbers under names, and a step that is whole."""
    if not isinstance(line, dict) or not all(isinstance(value, int | float) for value in line.values()):
        return False
    return 0 <= line.get("step", -1) < 1e12


def read_result(path: Path) -> tuple[list[dict[str, Any]], dict[str, int], list[str]]:
    """The lineage of a result, this run's entry last; the parameters of each part; notes. Empty where unfinished."""
    if not path.is_file():
        return [], {}, ["not finished: there is no model.safetensors yet, so no samples of the result are shown."]
    try:
        entries = list(read_lineage(read_metadata(path)).entries)
        sizes: dict[str, int] = {}
        with open_model_file(path) as file:
            for name in file.keys():  # noqa: SIM118
                part = name.split(".")[0]
                sizes[part] = sizes.get(part, 0) + math.prod(file.get_slice(name).get_shape())
    except ValueError as error:
        return [], {}, [f"not finished: model.safetensors cannot be read ({error})"]
    if not entries or not isinstance(entries[-1].get("steps"), int):
        return [], {}, ["not finished: model.safetensors does not say which run made it."]
    return entries, sizes, []


def read_pictures(run: Run) -> tuple[list[tuple[int, Image.Image]], list[str]]:
    """(step, picture) of the training, oldest first, and what is wrong with those that cannot be read."""
    pictures, damaged = [], []
    for step, path in run.samples:
        try:
            pictures.append((step, open_image(path)))
        except ValueError as error:
            damaged.append(str(error))
    return pictures, damaged


def ancestors_in(weights: str | None) -> list[dict[str, Any]]:
    """The lineage of the file that an unfinished run started from, where that file is still there."""
    if weights is None or not Path(weights).is_file():
        return []
    try:
        return list(read_lineage(read_metadata(weights)).entries)
    except ValueError:
        return []
