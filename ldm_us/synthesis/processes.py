"""Several processes that share the samples, started by torchrun: they meet at the start and at the end alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from ldm_us.runtime.torchrun import process_count


@dataclass(frozen=True)
class Crew:
    """This process among those that share the work; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """The process that prints, and that merges what all have written."""
        return self.rank == 0

    def takes(self, number: int) -> bool:
        """Whether the sample of this number is this process's: every size-th one."""
        return number % self.size == self.rank

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def first(self, action: Callable[[], None]) -> None:
        """Let process 0 act while the others wait; where it fails it alone says why, and all end."""
        if self.size == 1:
            action()
            return
        import torch.distributed as dist

        went_well: list[bool] = [False]
        problem: Exception | None = None
        if self.main:
            try:
                action()
                went_well = [True]
            except (ValueError, OSError) as error:
                problem = error
        dist.broadcast_object_list(went_well)
        if problem is not None:
            raise problem
        if not went_well[0]:
            raise SystemExit(2)


@contextmanager
def joined() -> Iterator[Crew]:
    """Join the other processes, and leave them at the end. They may arrive at the end days apart."""
    if process_count() == 1:
        yield Crew()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield Crew(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
