"""An exponential moving average of the trained weights; samples and results are made with it.   DDPM appendix B."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """average <- decay * average + (1 - decay) * weight after every step, the decay growing to `max_decay`."""

    def __init__(self, parameters: dict[str, nn.Parameter], max_decay: float):
        self.parameters = parameters
        self.max_decay = max_decay
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in parameters.items()} if max_decay > 0 else {}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights. The first updates weigh more: min(max_decay, (1 + n) / (10 + n))."""
        decay = min(self.max_decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, average in self.average.items():
            average.lerp_(self.parameters[name], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model holds the average; after, its own weights again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.average.items():  # values, not storages: FSDP holds on to those
            parameter = self.parameters[name]
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """What a resumed run needs."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        """Undo state_dict."""
        self.updates = state["updates"]
        for name, average in self.average.items():
            average.copy_(state["average"][name])
