"""Several processes as one run, started by torchrun: each takes its share of a batch, and gradients are averaged.

DistributedDataParallel (arXiv 2006.15704) keeps the whole model in every process; --shard splits weights, gradients and
the optimiser's state over them instead (FSDP2, after ZeRO, arXiv 1910.02054). All processes need the same folders.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ldm_us.networks.controlnet import HintNetwork
from ldm_us.networks.unet import Level, Middle
from ldm_us.runtime.torchrun import process_count


@dataclass(frozen=True)
class World:
    """This process among those of the run; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """The process that prints, logs and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average each value over all processes."""
        if self.size == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def check_all_well(self, problem: ValueError | OSError | None) -> None:
        """Raise the problem that one process has in every process, so that none waits for the one that gave up."""
        problems: list[Any] = [problem]
        if self.size > 1:
            problems = [None] * self.size
            dist.all_gather_object(problems, problem)
        for found in problems:
            if found is not None:
                raise found

    def check_same(self, what: str, value: object) -> None:
        """Raise ValueError in every process unless all have the same value."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise ValueError(
                f"process {others[0]} of {self.size} has another {what} than process 0 ({values[others[0]]}, not "
                f"{values[0]}). Give all processes the same files and options."
            )


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the other processes of the run, and leave them at the end."""
    if process_count() == 1:
        yield World()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
            raise
        raise ValueError("another process of this run has ended; what it printed says why.") from error
    finally:
        dist.destroy_process_group()


def distribute(loss: nn.Module, networks: Iterable[nn.Module], world: World, shard: bool) -> nn.Module:
    """Let backward leave the mean gradient of all processes in the networks, whose loss is the forward of `loss`."""
    if world.size == 1:
        return loss
    if not shard:
        return DistributedDataParallel(loss)
    for module in [module for module in loss.modules() if isinstance(module, (Level, Middle, HintNetwork))]:
        fully_shard(module)
    for network in networks:  # not the loss itself: sampling and validation call the networks without it
        fully_shard(network, reshard_after_forward=True)  # else it would go on with the average after EMA.swapped_in
    return loss


@contextmanager
def local_gradients(loss: nn.Module, last: bool) -> Iterator[None]:
    """Inside, gradients are added up in each process; only the last of several accumulated batches averages them."""
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last, recurse=False)
    with loss.no_sync() if isinstance(loss, DistributedDataParallel) and not last else nullcontext():
        yield


def whole(value: Any) -> Any:
    """Gather what --shard split, in nested dictionaries too, on the CPU; every process must call this."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    return value


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """Undo `whole` for one tensor: where `like` is split, keep this process's share."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
