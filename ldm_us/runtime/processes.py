"""The processes that torchrun starts: who this one is, and how all meet.

PyTorch takes seconds to import: only where there are several processes is it imported here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from ldm_us.runtime.stopping import Signals, caught_signals

PATIENCE = timedelta(days=30)  # one prepares large data while the others wait, or has ended long before them
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those that share the work; by default it is alone."""

    rank: int = 0
    size: int = 1
    signals: Signals = field(default_factory=Signals, compare=False)  # that have reached this process

    @property
    def main(self) -> bool:
        """The process that prints and logs, and writes what there is once."""
        return self.rank == 0

    def takes(self, number: int) -> bool:
        """Whether the piece of work of this number is this process's: every size-th one."""
        return number % self.size == self.rank

    def barrier(self) -> None:
        """Wait for all."""
        self.gathered(None)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average each value over all processes."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        total = torch.tensor(list(values.values()), dtype=torch.float64)  # on the CPU, where there is no NCCL
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def gathered(self, value: Any) -> list[Any]:
        """The value that each process gives, in the order of their ranks."""
        values = [value] * self.size
        if self.size > 1:
            import torch.distributed as dist

            dist.all_gather_object(values, value)
        return values

    def check_same(self, what: str, value: object) -> None:
        """Raise ValueError in every process unless all have the same value."""
        values = self.gathered(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise ValueError(
                f"process {others[0]} of {self.size} has another {what} than process 0 ({values[others[0]]}, not "
                f"{values[0]}). Give all processes the same files and options."
            )

    def first(self, action: Callable[[], None]) -> None:
        """Let process 0 act while the others wait; where it fails it alone says why, and all end."""
        problem: Exception | None = None
        if self.main:
            try:
                action()
            except (ValueError, OSError) as error:
                problem = error
        failed = self.gathered(problem is not None)[0]
        if problem is not None:
            raise problem
        if failed:
            raise SystemExit(2)

    def first_here(self, action: Callable[[], T]) -> T:
        """What an action returns that keeps its work on disk: process 0 does it, then the others find it done."""
        done: list[T] = []
        self.first(lambda: done.append(action()))
        return done[0] if done else action()


ALONE = World()


def process_count() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_kinds() -> list[str]:
    """The kinds of device that PyTorch sees here, the fastest first: a GPU, Apple's, the CPU."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_there in there.items() if is_there]


def local_device(device: str, like: str = "") -> str:
    """The device of this process: of several GPUs, the one that torchrun gave it.

    "auto" is a device of the kind `like` where there is one, else the fastest kind.
    """
    if device == "auto":
        kinds = device_kinds()
        device = like if like in kinds else kinds[0]
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@contextmanager
def joined(device: str = "cpu") -> Iterator[World]:
    """Join the other processes, and leave them at the end; on a GPU they talk through NCCL, else through gloo.

    One waits for another as long as it takes: torchrun ends all if one has failed. Signals are the world's meanwhile.
    """
    with caught_signals() as signals:
        if process_count() == 1:
            yield World(signals=signals)
            return
        import torch
        import torch.distributed as dist

        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
        try:
            yield World(dist.get_rank(), dist.get_world_size(), signals)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
                raise
            raise ValueError("another process of this run has ended; what it printed says why.") from error
        finally:
            dist.destroy_process_group()
