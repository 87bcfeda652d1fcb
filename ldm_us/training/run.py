"""The folder of a run: config.json, log.jsonl, samples/, state/, model.safetensors. The same command again resumes."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_us.files.atomic import atomic_file
from ldm_us.files.beside import Beside, off_host, on_host, write_tensors
from ldm_us.files.locks import NAME as LOCK
from ldm_us.files.locks import locked
from ldm_us.files.pickle_file import read_pickle_file
from ldm_us.runtime.machine import other_device
from ldm_us.runtime.processes import ALONE, World
from ldm_us.training.command_line import read_config
from ldm_us.training.dataset import changed_data, changed_decoding
from ldm_us.training.distributed import scatter_state
from ldm_us.training.log import read_lines, trim_log
from ldm_us.training.optimizers import EMA
from ldm_us.training.options import CAPTION_DROPOUT, FREE, TrainOptions
from ldm_us.training.stages import Stage

KEPT = 2  # states on disk: the newest, and the one before it
WRITING = Beside()
STATE = re.compile(r"step_(\d{8})\.pt")
PLACES = {"data", "weights", "save_every", "images", "decoded_sha256", "device"}  # no reason to refuse a run


@contextmanager
def opened_run(options: TrainOptions, hashes: dict[str, str], world: World = ALONE) -> Iterator[list[str]]:
    """Hold the folder of the run, new or of this very run, until the end; -> notes on how a run that is there goes on.

    hashes: of data, their images and parent. With --restart, another run that is there is renamed first. ValueError:
    the folder holds another run, or another process is training it, or the processes are not of one mind.
    """
    values = {name: value for name, value in vars(options).items() if name not in FREE}
    values |= {"save_every": options.save_every, "images_per_step": options.images_per_step}
    values |= {"lr": options.learning_rate, "device": options.device} | hashes
    config = json.loads(json.dumps(values, default=str))  # as config.json gives it back
    world.check_same("configuration", {name: value for name, value in config.items() if name not in PLACES})
    with ExitStack() as stack:
        notes: list[str] = []
        world.first(lambda: notes.extend(hold_folder(options, config, stack)))
        change = "without --restart" if options.restart else "again"
        world.signals.then = f". The same command {change} goes on from there."
        yield notes


def hold_folder(options: TrainOptions, config: dict[str, Any], stack: ExitStack) -> list[str]:
    """Create the folder, or check that it is of this run; lock and clear it to be written into; -> notes, as above."""
    if options.restart:
        set_aside(options)
    out = options.out
    check_folder(options, config)
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(out, f"{out} is being trained by another process. Wait for it, or stop it."))
    before = check_folder(options, config)  # again: whoever held it until now may have begun a run
    if before | config != before:
        with atomic_file(out / "config.json") as file:  # first: a run killed here has left nothing but leftovers
            file.write(json.dumps(before | config, indent=2).encode())
    for folder in (out, out / "samples", out / "state"):
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
    return notes_on_resuming(before, config) if before else []


def notes_on_resuming(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a run that goes on does otherwise than at its start, or than usual."""
    notes = changed_decoding(before, now) + other_device(before.get("device"), now["device"])
    usual, old = CAPTION_DROPOUT[now["stage"]], CAPTION_DROPOUT["unet"]
    if now["caption_dropout"] == old != usual:
        notes.append(f"the run was begun with --caption-dropout {old} and goes on with that, not with {usual}.")
    if "aspect" not in before:
        notes.append("the run was begun when all images were squashed to a square, and goes on so: --aspect squash.")
    return notes


def check_folder(options: TrainOptions, config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of this very run; empty for a new one. Raise ValueError for another run, or anything else."""
    out = options.out
    before = read_config(out / "config.json")
    if before is None:
        # A run that was killed while it wrote its config.json has left nothing but these.
        if out.exists() and not all(path.name == LOCK or path.match(".config.json.*.tmp") for path in out.iterdir()):
            raise ValueError(f"{out} is not empty and holds no run. Choose another --out.")
        return {}
    changes = differences(before, config)
    if before["images_per_step"] == config["images_per_step"] * options.processes != config["images_per_step"]:
        whole = before["images_per_step"] // options.accumulate
        changes.append(f"--batch is that of all {options.processes} processes together now: give --batch {whole}")
    if changes:
        raise ValueError(
            f"{out} holds another run ({'; '.join(changes)}). Use its settings or another --out, or add --restart to "
            "set that run aside."
        )
    check_states(out, before)
    return before


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what two configurations are of different runs, in words. Contents are compared, not where they lie."""
    skipped, before = PLACES, {"aspect": "squash"} | before  # an older run knew nothing else
    if now["data_weights"] is not None and "folders_sha256" not in before:  # of an older run: it knows paths alone
        skipped = (PLACES | {"folders_sha256"}) - {"data"}
    names = sorted(name for name in (now.keys() | before.keys()) - skipped if now.get(name) != before.get(name))
    said = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names if not name.endswith("_sha256")]
    if "parent_sha256" in names:
        said.append("--weights is another file than the one it started from")
    if {"data_sha256", "records_sha256", "folders_sha256"} & set(names):
        said.append(changed_data(before, now))
    if "decoded_sha256" not in before and now["seed"] >= 2**32 and now["weights"] is None:
        said.append("its random weights came from the last 32 bits of --seed alone")
    if "judge_sha256" in names:
        said.append("the judge of --perceptual is another")
    return said


def check_states(run: Path, config: dict[str, Any]) -> None:
    """Refuse to begin a run again that had come further before its states were deleted: that would overwrite it."""
    if list_states(run):
        return
    step = max((int(line["step"]) for line in read_lines(run / "log.jsonl")), default=0)
    saved = not (run / "state").is_dir() or step > config.get("save_every", step)
    if (step > 0 and saved) or (run / "model.safetensors").exists():
        raise ValueError(f"{run} is at step {step}, but its states are gone, so it cannot go on. {ways_on(run)}")


def ways_on(run: Path) -> str:
    """What to do about a run that cannot go on."""
    result = run / "model.safetensors"
    other = f" Or train on from its result: another --out with --weights {result}." if result.is_file() else ""
    return f"Add --restart to begin again at step 0; this run is renamed, not deleted.{other}"


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


def save_state(run: Path, step: int, state: dict[str, Any], world: World = ALONE, wait: bool = True) -> None:
    """Write RUN/state/step_N.pt, then delete all but the newest two; only process 0 does. wait: until it is there.

    Else a state of a GPU is copied and written beside the next steps: in SD 1.5's case 10 GB, seconds of a disk.
    """
    if not world.main:
        return
    if wait or not off_host(state):
        WRITING.wait()
        write_state(run, step, state)
    else:
        WRITING.start(partial(write_state, run, step, on_host(state)))


def write_state(run: Path, step: int, state: dict[str, Any]) -> None:
    """The same in this thread."""
    (folder := run / "state").mkdir(exist_ok=True)
    write_tensors(folder / f"step_{step:08d}.pt", {"step": step} | state)
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
        raise ValueError(f"no state can be read ({'; '.join(failures)}). {ways_on(run)}")
    return None


def list_states(run: Path) -> list[Path]:
    """State files, oldest first."""
    return sorted(path for path in (run / "state").glob("step_*.pt") if STATE.fullmatch(path.name))


@torch.no_grad()
def resume(stage: Stage, optimizer: torch.optim.Optimizer, ema: EMA, steps: int) -> int:
    """Put the newest state of the run in place; return its step, 0 for a fresh run. Raise ValueError beyond `steps`.

    Files are changed last, when all fits.
    """
    run, world = stage.options.out, stage.world
    state = load_newest_state(run)
    step = 0 if state is None else int(state["step"])
    world.check_same("state", step)
    if step > steps:
        raise ValueError(f"{run} is at step {step}, beyond the {steps} asked for. Ask for more steps.")
    if state is not None:
        put_in_place(state, stage, optimizer, ema)
    if world.main:
        delete_old_states(run)
        trim_log(run / "log.jsonl", step or -1)  # a fresh run logs its step 0 again
    return step


def put_in_place(state: dict[str, Any], stage: Stage, optimizer: torch.optim.Optimizer, ema: EMA) -> None:
    """Load a state into the networks, their average, the optimiser, the adversary and fp16's scale."""
    if stage.adversary is not None:
        try:
            stage.adversary.load_state_dict(state["adversary"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # torch's of another width
            raise ValueError(
                f"{stage.options.out}: the state of step {state['step']} has no discriminator that fits. Add --restart."
            ) from error
    if stage.scaler.is_enabled():
        stage.scaler.load_state_dict(state["scaler"])
    if stage.options.shard:
        scatter_state(stage.networks, optimizer, ema, state, stage.world)
        return
    moments = state["optimizer"]["state"]
    for i, (name, parameter) in enumerate(ema.parameters.items()):  # the optimiser numbers them in this order
        parameter.copy_(state["trained"][name])
        moments[i] = {key: laid_out_like(value, parameter) for key, value in moments[i].items()}
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])


def laid_out_like(value: Any, parameter: nn.Parameter) -> Any:
    """A moment in its parameter's memory layout: fused AdamW walks memory, and would take another weight's."""
    other = not isinstance(value, torch.Tensor) or value.shape != parameter.shape
    return value if other else torch.empty_like(parameter).copy_(value)
