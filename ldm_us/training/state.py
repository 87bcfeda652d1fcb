"""The resumable state of a run: everything that the next step depends on, in one file that is whole or not there."""

import re
from pathlib import Path
from typing import Any

import torch

from ldm_us.files.atomic import atomic_file
from ldm_us.files.pickle_file import read_pickle_file
from ldm_us.runtime.processes import ALONE, World

KEPT = 2  # states on disk: the newest, and the one before it
NAME = re.compile(r"step_(\d{8})\.pt")


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
    paths = list_states(run)
    failures = []
    for path in reversed(paths):
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
    return sorted(path for path in (run / "state").glob("step_*.pt") if NAME.fullmatch(path.name))
