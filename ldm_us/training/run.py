"""The folder of a run: config.json, log.jsonl, samples/, state/, model.safetensors. The same command again resumes."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_us.files.atomic import atomic_file
from ldm_us.files.locks import NAME as LOCK
from ldm_us.files.locks import locked
from ldm_us.files.pickle_file import read_pickle_file
from ldm_us.runtime.processes import ALONE, World
from ldm_us.training.distributed import scatter_state
from ldm_us.training.log import trim_log
from ldm_us.training.optimizers import EMA
from ldm_us.training.options import FREE, TrainOptions
from ldm_us.training.stages import Stage

KEPT = 2  # states on disk: the newest, and the one before it
STATE = re.compile(r"step_(\d{8})\.pt")


@contextmanager
def opened_run(options: TrainOptions, hashes: dict[str, str], world: World = ALONE) -> Iterator[None]:
    """Hold the folder of the run, new or of this very run, until the end. hashes: of data and parent.

    With --restart, another run that is there is renamed first. Raise ValueError where the folder cannot be this run's:
    it holds another, another process is training it, or the processes are not of one mind.
    """
    values = {name: value for name, value in vars(options).items() if name not in FREE}
    values |= {"lr": options.learning_rate, "images_per_step": options.images_per_step} | hashes
    config = json.loads(json.dumps(values, default=str))  # as config.json gives it back
    world.check_same("configuration", config)
    with ExitStack() as stack:
        world.first(lambda: hold_folder(options, config, stack))
        yield


def hold_folder(options: TrainOptions, config: dict[str, Any], stack: ExitStack) -> None:
    """Create the folder or check that the run in it is this one, lock it, and make it ready to be written into."""
    if options.restart:
        set_aside(options)
    out = options.out
    check_folder(out, config)
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(out, f"{out} is being trained by another process. Wait for it, or stop it."))
    if not check_folder(out, config):  # whoever held it until now may have begun a run
        with atomic_file(out / "config.json") as file:  # first: a run killed here has left nothing but leftovers
            file.write(json.dumps(config, indent=2).encode())
    for folder in (out, out / "samples", out / "state"):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()


def check_folder(out: Path, config: dict[str, Any]) -> bool:
    """Say whether the folder holds this very run. Raise ValueError where it holds another, or anything else."""
    before = read_config(out / "config.json")
    if before is None:
        # A run that was killed while it wrote its config.json has left nothing but these.
        if out.exists() and not all(path.name == LOCK or path.match(".config.json.*.tmp") for path in out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no run. Choose another --out.")
        return False
    differing = sorted(name for name in config.keys() | before.keys() if config.get(name) != before.get(name))
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)}, is {config.get(name)}" for name in differing)
        raise ValueError(
            f"{out} holds another run ({changes}). Use its settings or another --out, or add --restart to set that "
            "run aside."
        )
    return True


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a run; None where there is none, or one of another program."""
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return config if isinstance(config, dict) and "data_sha256" in config else None


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


def save_state(run: Path, step: int, state: dict[str, Any], world: World = ALONE) -> None:
    """Write RUN/state/step_N.pt atomically, then delete all but the newest two; only process 0 does."""
    if not world.main:
        return
    folder = run / "state"
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    try:
        with atomic_file(path) as file:
            torch.save({"step": step} | state, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch makes a RuntimeError of a full disk
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    delete_old_states(run)


def delete_old_states(run: Path) -> None:
    """Delete all states but the newest two. A run that was killed before it did so does it when it resumes."""
    for path in list_states(run)[:-KEPT]:
        path.unlink()


def load_newest_state(run: Path) -> dict[str, Any] | None:
    """The newest state that can be read, or None where there is none.

    weights_only alone does not make a stranger's file safe (CVE-2025-32434, CVE-2026-24747): read_pickle_file comes
    first, runs nothing, and refuses whatever is not tensors, numbers and names.
    """
    failures = []
    for path in reversed(list_states(run)):
        try:
            read_pickle_file(path)  # it is ours by its name alone
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a damaged file makes torch raise
            failures.append(f"{path}: {type(error).__name__}")
    if failures:
        raise ValueError(f"no state can be read ({'; '.join(failures)}). Delete {run / 'state'} to start again.")
    return None


def list_states(run: Path) -> list[Path]:
    """State files, oldest first."""
    return sorted(path for path in (run / "state").glob("step_*.pt") if STATE.fullmatch(path.name))


@torch.no_grad()
def resume(stage: Stage, optimizer: torch.optim.Optimizer, ema: EMA) -> int:
    """Put the newest state of the run in place; return its step, 0 for a fresh run."""
    run, world = stage.options.out, stage.world
    state = load_newest_state(run)
    step = 0 if state is None else int(state["step"])
    world.check_same("state", step)
    if world.main:
        delete_old_states(run)
        trim_log(run / "log.jsonl", step or -1)  # a fresh run logs its step 0 again
    if state is None:
        return 0
    if stage.adversary is not None:
        try:
            stage.adversary.load_state_dict(state["adversary"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # torch's of another width
            raise ValueError(
                f"{run / 'state'}: the state of step {step} has no discriminator that fits. Add --restart."
            ) from error
    if stage.options.shard:
        scatter_state(stage.networks, optimizer, ema, state, world)
        return step
    moments = state["optimizer"]["state"]
    for i, (name, parameter) in enumerate(ema.parameters.items()):  # the optimiser numbers them in this order
        parameter.copy_(state["trained"][name])
        moments[i] = {key: laid_out_like(value, parameter) for key, value in moments[i].items()}
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])
    return step


def laid_out_like(value: Any, parameter: nn.Parameter) -> Any:
    """A moment in its parameter's memory layout: fused AdamW walks memory, and would take another weight's."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(value)
