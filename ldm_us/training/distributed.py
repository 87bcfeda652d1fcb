"""One model trained by several processes: each takes its share of a batch, and gradients are averaged.

DistributedDataParallel (arXiv 2006.15704) keeps the whole model in every process; --shard splits weights, gradients and
the optimiser's state over them instead (FSDP2, after ZeRO, arXiv 1910.02054). All processes need the same folders.
PyTorch's modules for it take seconds to import: only where they are needed are they imported.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldm_us.networks.controlnet import HintNetwork
from ldm_us.networks.unet import Level, Middle
from ldm_us.runtime.processes import World
from ldm_us.training.optimizers import EMA


def distribute(loss: nn.Module, networks: nn.ModuleDict, world: World, shard: bool) -> nn.Module:
    """Let backward leave the mean gradient of all processes in the networks, whose loss is the forward of `loss`."""
    if world.size == 1:
        return loss
    if not shard:
        return DistributedDataParallel(loss, gradient_as_bucket_view=True)  # else it holds each gradient twice
    from torch.distributed.fsdp import fully_shard

    for module in [module for module in loss.modules() if isinstance(module, (Level, Middle, HintNetwork))]:
        fully_shard(module)
    for network in networks.values():  # not the loss itself: sampling and validation call the networks without it
        fully_shard(network, reshard_after_forward=True)  # else it would go on with the average after EMA.swapped_in
    return loss


def average_gradients(loss: nn.Module, now: bool) -> None:
    """Say whether the next backward averages over the processes, as the last one of a step does, or adds up in each."""
    if isinstance(loss, DistributedDataParallel):
        loss.require_backward_grad_sync = now
        return
    from torch.distributed.fsdp import FSDPModule

    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now, recurse=False)


def average_over_processes(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Make the gradients of weights that every process holds the mean of all processes, in place."""
    if world.size == 1:
        return
    import torch.distributed as dist

    for parameter in parameters:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= world.size


def gathered_weights(networks: nn.ModuleDict) -> dict[str, Tensor]:
    """The weights that --shard split: in process 0 all of them, on the CPU; in every other an empty dictionary."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(networks, options=options)
    return weights


def gathered_state(networks: nn.ModuleDict, optimizer: torch.optim.Optimizer, ema: EMA) -> dict[str, Any]:
    """The resumable state of weights that --shard split, as one process would have it; empty but in process 0."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    weights = gathered_weights(networks)
    with ema.swapped_in():
        average = gathered_weights(networks) if ema.average else {}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    moments: Any = get_optimizer_state_dict(networks, optimizer, options=options)
    if not weights:
        return {}
    names = list(ema.parameters)  # the optimiser of one process knows its weights by their places in this list
    (group,) = moments["param_groups"]
    return {
        "trained": {name: weights[name] for name in names},
        "ema": {"updates": ema.updates, "average": {name: average[name] for name in ema.average}},
        "optimizer": {
            "state": {i: moments["state"][name] for i, name in enumerate(names)},
            "param_groups": [group | {"params": list(range(len(names)))}],
        },
    }


def scatter_state(
    networks: nn.ModuleDict, optimizer: torch.optim.Optimizer, ema: EMA, state: dict[str, Any], world: World
) -> None:
    """Undo gathered_state: process 0 reads the tensors of the state, and every process is sent its share of each."""
    from torch.distributed.checkpoint import state_dict as distributed

    options = distributed.StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=True, strict=False
    )  # some weights are frozen
    names, moments = list(ema.parameters), state["optimizer"]
    groups = [group | {"params": names} for group in moments["param_groups"]]
    named: Any = {"state": {name: moments["state"][i] for i, name in enumerate(names)}, "param_groups": groups}
    distributed.set_optimizer_state_dict(networks, optimizer, named if world.main else {}, options=options)
    distributed.set_model_state_dict(networks, state["trained"] if world.main else {}, options=options)
    ema.updates = state["ema"]["updates"]
    if ema.average:
        with ema.swapped_in():  # what is put in place inside is the average after
            distributed.set_model_state_dict(networks, state["ema"]["average"] if world.main else {}, options=options)
