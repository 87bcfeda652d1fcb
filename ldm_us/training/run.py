"""The folder of a run: config.json, log.jsonl, samples/, state/, model.safetensors. The same command again resumes."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_us.files.atomic import atomic_file
from ldm_us.files.locks import try_exclusive
from ldm_us.training.distributed import ALONE, World, split_like
from ldm_us.training.ema import EMA
from ldm_us.training.options import FREE, TrainOptions
from ldm_us.training.state import append_log, delete_old_states, load_newest_state, trim_log


def total_steps(options: TrainOptions, images: int) -> int:
    """--steps, or --epochs in steps."""
    if options.steps is not None:
        return options.steps
    assert options.epochs is not None
    return max(1, math.ceil(options.epochs * images / options.images_per_step))


@contextmanager
def opened_run(options: TrainOptions, hashes: dict[str, str], world: World = ALONE) -> Iterator[None]:
    """Hold the folder of the run, new or of this very run, until the end. hashes: of data and parent.

    With --restart, another run that is there is renamed first. Raise ValueError, in every process, where the folder
    cannot be this run's: it holds another, another process is training it, or the processes are not of one mind.
    """
    config = fixed_options(options) | hashes
    world.check_same("configuration", config)
    with ExitStack() as stack:
        problem = None
        if world.main:
            try:
                if options.restart:
                    set_aside(options)
                create_or_check(options.out, config)
                stack.enter_context(locked(options.out))
                make_folders(options.out)
            except (ValueError, OSError) as error:
                problem = error
        world.check_all_well(problem)
        yield


def create_or_check(out: Path, config: dict[str, Any]) -> None:
    """Create the folder with its config.json, or check that the run in it is this one."""
    path = out / "config.json"
    before = read_config(path)
    if before is not None:
        differing = sorted(name for name in config.keys() | before.keys() if config.get(name) != before.get(name))
        if differing:
            changes = "; ".join(f"{name} was {before.get(name)}, is {config.get(name)}" for name in differing)
            raise ValueError(
                f"{out} holds another run ({changes}). Use its settings or another --out, or add --restart to set that "
                "run aside."
            )
    elif out.exists() and not holds_only_leftovers(out):
        raise ValueError(f"{out} is not empty and holds no run. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    if before is None:
        with atomic_file(path) as file:  # before the folders: a run killed here has left nothing but a leftover
            file.write(json.dumps(config, indent=2).encode())


def make_folders(out: Path) -> None:
    """Make what a run writes into, and remove the leftovers of killed writes."""
    for folder in (out, out / "samples", out / "state"):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        if not try_exclusive(descriptor):
            raise ValueError(f"{out} is being trained by another process. Wait for it, or stop it.")
        yield
    finally:
        os.close(descriptor)


def holds_only_leftovers(out: Path) -> bool:
    """Whether a folder is empty, or was left by a run that was killed while it wrote its config.json."""
    return all(path.match(".config.json.*.tmp") for path in out.iterdir())


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a run; None where there is none, or one of another program."""
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return config if isinstance(config, dict) and "data_sha256" in config else None


def fixed_options(options: TrainOptions) -> dict[str, Any]:
    """The options that decide what a run computes, as JSON gives them back."""
    values = {name: value for name, value in vars(options).items() if name not in FREE}
    values |= {"lr": options.learning_rate, "images_per_step": options.images_per_step}
    fixed: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return fixed


@torch.no_grad()
def resume(
    run: Path, parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer, world: World = ALONE
) -> int:
    """Put the newest state of the run in place; return its step, 0 for a fresh run."""
    state = load_newest_state(run)
    step = 0 if state is None else int(state["step"])
    world.check_same("state", step)
    if world.main:
        delete_old_states(run)
        trim_log(run / "log.jsonl", step or -1)  # a fresh run logs its step 0 again
    if state is None:
        return 0
    for name, parameter in parameters.items():
        parameter.copy_(split_like(state["trained"][name], parameter))
    ema.load_state_dict(state["ema"])
    moments = state["optimizer"]["state"]
    for index, parameter in enumerate(parameters.values()):  # the optimiser numbers them in this order
        moments[index] = {name: laid_out_like(value, parameter) for name, value in moments[index].items()}
    optimizer.load_state_dict(state["optimizer"])
    return step


def laid_out_like(value: Any, parameter: nn.Parameter) -> Any:
    """A moment in its parameter's memory layout: fused AdamW walks memory, and would take another weight's."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(split_like(value, parameter))


def set_aside(options: TrainOptions) -> None:
    """Make room for --restart: the run that is there, if any, goes to RUN-before-1, -2, ..."""
    run = options.out
    if read_config(run / "config.json") is None:
        return
    for path in (options.weights, options.cache, *options.data):
        if path is not None and path.resolve().is_relative_to(run.resolve()):
            raise ValueError(f"--restart would rename {run}, and {path} lies in it. Choose another --out.")
    places = (run.with_name(f"{run.name}-before-{i}") for i in count(1))
    run.rename(next(place for place in places if not place.exists()))


class Log:
    """log.jsonl: a line every few steps, each value the mean since the line before."""

    def __init__(self, run: Path, step: int, world: World = ALONE):
        self.path = run / "log.jsonl"
        self.world = world
        self.step = step
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, step: int, values: dict[str, float], every: int) -> dict[str, float]:
        """Take a step's values in; write a line when `every` divides the step. Return the means so far."""
        self.step = step
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        means = {name: total / self.count for name, total in self.sums.items()}
        if step % every == 0:
            self.flush()
        return means

    def flush(self) -> None:
        """Write what has come since the last line, so that a state and the log up to it agree."""
        if self.count == 0:
            return
        means = {name: total / self.count for name, total in self.sums.items()}
        if self.world.main:
            append_log(self.path, {"step": self.step} | means)
        self.sums, self.count = {}, 0
