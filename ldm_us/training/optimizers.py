"""What a step does to the weights: the optimizers by name, AdamW and two with a smaller state; and the average.

Samples and results are made with the average.   Paper: arXiv 2006.11239 (DDPM), appendix B.
With fp16 the loss is scaled up, so that small gradients do not become 0.   Paper: arXiv 1710.03740, section 3.2.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm_us.training.options import OPTIMIZERS, TrainOptions

BETAS = (0.9, 0.999)  # of both Adams


def make_optimizer(name: str, parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer `name`, one of OPTIMIZERS. `lr` is about the size of one step of a weight for all of them.

    - adamw: two numbers a weight. arXiv 1711.05101.
    - adafactor: a row and a column for each matrix instead of a square, no momentum. arXiv 1804.04235, Algorithm 4.
      A convolution's kernel counts as h x w matrices, so 3x3 kernels save less, and 1x1 ones nothing.
    - adamw8bit: AdamW whose two numbers take a byte each. arXiv 2110.02861. Tensors under 4096 weights stay in float32.

    `parameters` are what torch's optimizers take. The learning rate may be changed between steps, in param_groups.
    States are tensors and numbers alone.
    Raise ValueError for another name, or where the package behind the name is missing.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)
    if name == "adafactor":
        # torch multiplies lr by max(eps2, RMS of the weight), which for weights that start at zero, such as B of a LoRA
        # or a zero convolution, is eps2 = 1e-3. With eps2 = 1, a step has RMS lr; more only where weights exceed 1.
        # torch squares eps1 where the paper has 1e-30, but also takes it as the least mean square of a row: its default
        # of 1e-7 would level gradients below 3e-4, and those of a large UNet are about 1e-6.
        return torch.optim.Adafactor(parameters, lr=lr, eps=(1e-15, 1.0), weight_decay=weight_decay)
    if name != "adamw8bit":
        raise ValueError(f"optimizer {name!r}: use one of {', '.join(OPTIMIZERS)}.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"optimizer 'adamw8bit' needs bitsandbytes ({error}). Install the extra: `pip install -e .[memory]`."
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, lr=lr, betas=BETAS, weight_decay=weight_decay)
    return optimizer


def groups_of(parameters: Mapping[str, nn.Parameter], text_lr: float | None) -> list[dict[str, Any]]:
    """Groups for make_optimizer: one of all, or with --text-lr the text encoder's first, as in the model's order."""
    of_text = [p for name, p in parameters.items() if name.startswith("text.")]
    if text_lr is None:
        return [{"params": list(parameters.values())}]
    others = [p for name, p in parameters.items() if not name.startswith("text.")]
    return [{"params": own} for own in (of_text, others) if own]


def set_rates(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps: int) -> float:
    """Set the learning rate of step 1..steps; -> that of all but the text encoder.

    It rises linearly during --warmup. The schedule cosine then falls to 0 (arXiv 1608.03983, Eq. 5 without restarts).
    """
    share = min(1.0, step / max(1, options.warmup))
    if options.lr_schedule == "cosine" and step > options.warmup:
        share = 0.5 * (1 + math.cos(math.pi * (step - 1 - options.warmup) / (steps - options.warmup)))
    peaks = [options.learning_rate] if options.text_lr is None else [options.text_lr, options.learning_rate]
    for group, peak in zip(optimizer.param_groups, peaks, strict=False):  # learned prompts alone: no second group
        group["lr"] = peak * share
    return options.learning_rate * share


def end_of_schedule(options: TrainOptions, steps: int) -> dict[str, str]:
    """What config.json says of a schedule that depends on the length of a run: with more steps it is another run."""
    if options.lr_schedule is None:
        return {}
    if options.warmup >= steps:
        raise ValueError(f"--warmup {options.warmup}: nothing of {steps} steps is left for --lr-schedule cosine.")
    return {"steps_of_the_schedule": str(steps)}


class EMA:
    """An exponential moving average of the trained weights, the decay growing to `max_decay`.

    average <- decay * average + (1 - decay) * weight after every step.
    """

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
        if self.average:
            weights: list[Tensor] = [self.parameters[name] for name in self.average]
            # Few kernels for hundreds of weights: us128's UNet 0.8 ms instead of 1.4, one thread of an AMD EPYC.
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

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


def whole_state(optimizer: torch.optim.Optimizer, ema: EMA) -> dict[str, Any]:
    """The resumable state of one process: weights, their average, and the optimiser's moments."""
    trained = {name: parameter.detach() for name, parameter in ema.parameters.items()}
    return {"trained": trained, "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}


def update_weights(
    optimizer: torch.optim.Optimizer, ema: EMA, scaler: torch.amp.GradScaler, clip: float
) -> dict[str, Tensor | float]:
    """Clip the gradients, take a step, let the average follow, and delete the gradients; -> what the log should hold.

    With fp16 a step whose scaled gradients overflow is left out, and the next ones are scaled by half as much. In the
    means of the log it counts as a gradient of 0.
    """
    scaler.unscale_(optimizer)
    norm = whole(torch.nn.utils.clip_grad_norm_(ema.parameters.values(), clip))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    ema.update()
    if not scaler.is_enabled():
        return {"grad_norm": norm}
    return {"grad_norm": norm.nan_to_num(0.0, 0.0), "skipped": (~norm.isfinite()).float()}


def check_scale(scaler: torch.amp.GradScaler) -> None:
    """Raise ValueError where the gradients of fp16 overflow even unscaled: no step would be taken any more."""
    if scaler.is_enabled() and scaler.get_scale() < 1:
        raise ValueError(
            "--precision fp16: the gradients overflow at every scale. Use bf16 or fp32 in a new --out folder."
        )


def whole(value: Tensor) -> Tensor:
    """One tensor that may be split, gathered from all processes; every process must call this."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()
