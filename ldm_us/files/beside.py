"""Tensors in a file, and a file that is written beside the work of the main thread, from a copy of the tensors."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ldm_us.files.atomic import atomic_file


class Beside:
    """One write at a time. Python waits for it before a program ends, unless that is killed."""

    def __init__(self) -> None:
        self.thread: Thread | None = None
        self.problems: list[BaseException] = []

    def start(self, write: Callable[[], None]) -> None:
        """Let this be written, after what was before it; an error of that is raised here."""
        self.wait()
        self.thread = Thread(target=self.run, args=(write,))
        self.thread.start()

    def run(self, write: Callable[[], None]) -> None:
        """Write, and keep the error for the main thread."""
        try:
            write()
        except BaseException as error:
            self.problems.append(error)

    def wait(self) -> None:
        """Wait until all is written; raise its error, once."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.problems:
            raise self.problems.pop()


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    """Write what torch.load reads, atomically; an error of the disk names the file."""
    try:
        with atomic_file(path) as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch makes a RuntimeError of a full disk
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def on_host(value: Any) -> Any:
    """The same with every tensor copied to memory of the CPU."""
    return tree_map(lambda leaf: leaf.to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf, value)


def off_host(value: Any) -> bool:
    """Whether a tensor in it lies elsewhere: then a copy takes far less time than a disk."""
    return any(isinstance(leaf, Tensor) and leaf.device.type != "cpu" for leaf in tree_leaves(value))
