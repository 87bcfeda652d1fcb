"""How two sides are timed against each other, and the least time that a machine could need: the floor."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bench.parity_table import now
from bench.speed.settings import Settings

Call = Callable[[], Any]
SIDE = 2048  # rows and columns of the matrices that give the matrix rate
COPIED = 1 << 28  # bytes


def timed(call: Call, clock: str = "wall") -> tuple[Any, float]:
    """A result and the seconds that it took, on the wall or of this process's processors."""
    started = read(clock)
    value = call()
    return value, read(clock) - started


def read(clock: str) -> float:
    """Seconds since a moment that stays the same; those of the processors do not run while other programs do."""
    return time.process_time() if clock == "cpu" else now()


def alternate(ours: Call, theirs: Call, rounds: int, clock: str = "wall") -> tuple[list[float], list[float]]:
    """Seconds of both sides, `rounds` of each, one right after the other; who begins changes from round to round.

    What else the machine does slows both, so a round's ratio means more than its times. Nothing warms up here.
    """
    seconds: tuple[list[float], list[float]] = [], []
    for i in range(rounds):
        for side in ((0, 1), (1, 0))[i % 2]:
            _, taken = timed((ours, theirs)[side], clock)
            seconds[side].append(taken)
    return seconds


class Rates(NamedTuple):
    """What this machine does at best."""

    matrix: float  # FLOP/s of a product of two large matrices
    copy: float  # bytes/s that a copy reads and writes

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that so many FLOP, or the bytes that must be read and written, take at least."""
        return max(flops / self.matrix, moved / self.copy)


def measured_rates(settings: Settings, repeats: int = 5) -> Rates:
    """The best of several products of 2048 x 2048 matrices, and of several copies of 256 MiB."""
    device, dtype, clock = settings.device, settings.torch_dtype, settings.clock
    side = SIDE * (4 if device.startswith("cuda") else 1)
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    product, copy = (best(call, repeats, clock) for call in (lambda: matrix @ matrix, lambda: target.copy_(source)))
    return Rates(2 * side**3 / product, 2 * COPIED / copy)


def best(call: Call, repeats: int, clock: str) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    return min(timed(call, clock)[1] for _ in range(repeats + 1))


def sdpa_flops(q: Any, k: Any, v: Any, *arguments: Any, **options: Any) -> int:
    """FLOP of an attention from the shapes of q, k and v."""
    return sdpa_flop_count(q, k, v)


def sdpa_backward_flops(grad: Any, q: Any, k: Any, v: Any, *arguments: Any, **options: Any) -> int:
    """FLOP of its backward pass."""
    return sdpa_backward_flop_count(grad, q, k, v)


ON_CPU = {  # torch counts the attention of a GPU only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flops,
}


def flops_of(call: Call) -> tuple[Any, int]:
    """What a call gives, and the FLOP of its products, convolutions and attentions."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        value = call()
    return value, counter.get_total_flops()


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights, each of which a call reads at least once."""
    weights: list[Tensor] = [weight for module in modules for weight in module.parameters()]
    return sum(weight.nbytes for weight in weights)
