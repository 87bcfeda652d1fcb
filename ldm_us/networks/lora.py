"""LoRA: train a low-rank update of each attention projection, every weight frozen.   Paper: arXiv 2106.09685, Eq. 3.

    parameters = add_lora(model, LoRAConfig(rank=8, alpha=8), generator)    # train these; then
    merge_lora(model)                                                       # a plain model, or
    remove_lora(model)                                                      # the model from before

ldm_us/files/lora_file.py keeps the updates in a small file of their own.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.config import PROJECTIONS, TARGETS
from ldm_us.networks.layers import Attention

PARTS = ("unet", "text", "controlnet")
# What a ControlNet has beside its copy of the UNet starts from nothing, so an update of low rank would not do.
CONTROL_PARTS = ("controlnet.hint_network", "controlnet.zero_convs", "controlnet.zero_conv_middle")


class Update(NamedTuple):
    """The update of one linear layer or convolution."""

    module: str  # full name, such as "unet.middle.transformer.proj_in"
    rank: int  # r
    alpha: float

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class LoRAConfig:
    """Which projections are updated, and how. Raise ValueError for values that make no sense."""

    rank: int = 8  # r
    alpha: float = 8.0  # the update is scaled by alpha / r
    parts: tuple[str, ...] = ("unet",)  # of PARTS
    targets: tuple[str, ...] = PROJECTIONS  # of TARGETS: "q" of every attention, "cross.q" of those to the text alone
    full: tuple[str, ...] = ()  # parameters or modules trained whole beside the updates, such as "text.prompt"
    modules: tuple[Update, ...] = ()  # instead of parts and targets, each with its own rank: LoRAs of other programs

    def __post_init__(self) -> None:
        if self.rank < 1 or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"LoRA rank {self.rank}, alpha {self.alpha}: both must be above 0.")
        for what, values, known in (("parts", self.parts, PARTS), ("targets", self.targets, TARGETS)):
            unknown = [value for value in values if value not in known]
            if unknown or len(set(values)) != len(values):
                raise ValueError(f"LoRA {what} {', '.join(values)}: use each of {', '.join(known)} at most once.")
        if not all(isinstance(name, str) and name for name in self.full):
            raise ValueError(f"LoRA with {self.full} trained whole: name parameters or modules.")
        if self.modules and (self.parts or self.full):
            raise ValueError("a LoRA of single modules has no parts and trains nothing whole: leave those empty.")
        if len({update.module for update in self.modules}) < len(self.modules):
            raise ValueError("a LoRA of single modules: one of them is there twice.")
        for module, rank, alpha in self.modules:
            if not module.startswith(("unet.", "text.")):
                raise ValueError(f"LoRA on {module}: single modules are those of unet and text.")
            if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
                raise ValueError(f"LoRA rank {rank}, alpha {alpha} of {module}: both must be above 0.")
        if not (self.parts and self.targets) and not self.full and not self.modules:
            raise ValueError("a LoRA without parts or targets trains nothing: name at least one of each.")

    def updates(self, modules: Iterable[str]) -> list[Update]:
        """Rank and alpha of each of these modules."""
        own = {update.module: update for update in self.modules}
        return [own.get(module, Update(module, self.rank, self.alpha)) for module in modules]

    @property
    def whole(self) -> tuple[str, ...]:
        """Everything trained whole: `full`, and of a ControlNet what is no copy of the UNet."""
        return self.full + (CONTROL_PARTS if "controlnet" in self.parts else ())


class LoRALinear(nn.Linear):
    """A projection and its low-rank update. Weight and bias keep their names; B, lora_up, starts at zero."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = config.alpha / config.rank
        self.lora_down = nn.Linear(linear.in_features, config.rank, bias=False, device="meta")
        self.lora_up = nn.Linear(config.rank, linear.out_features, bias=False, device="meta")
        # Gaussian A and zero B, as in section 4.1; with variance 1 / width, A x is as large as x.
        down = torch.randn(config.rank, linear.in_features, generator=generator) / math.sqrt(linear.in_features)
        self.lora_down.weight = nn.Parameter(down.to(linear.weight))
        self.lora_up.weight = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.rank))
        self.train(linear.training)

    def forward(self, features: Tensor) -> Tensor:
        """(..., width_in) -> (..., width_out)."""
        update = self.lora_up(self.lora_down(features))
        return F.linear(features, self.weight, self.bias) + self.scale * update  # LoRA Eq. 3

    def plain(self) -> nn.Linear:
        """The projection without its update: the same parameters in a plain nn.Linear."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)


def add_lora(model: nn.Module, config: LoRAConfig, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Freeze `model`, a LatentDiffusion, and give its projections updates: {full name: every parameter to train}.

    No output bit changes yet. Initial values come from `generator`, a CPU one, in the order of the model's modules.
    Raise ValueError where a LoRA is there already, a part is missing, or the rank is larger than a projection.
    """
    if has_lora(model):
        raise ValueError("this model has a LoRA already: merge_lora or remove_lora first.")
    if config.modules:
        raise ValueError("a LoRA of single modules can be applied, not trained: choose parts and targets.")
    linears = dict(projections(model, config))
    for name, linear in linears.items():
        if config.rank > min(linear.weight.shape):
            raise ValueError(f"LoRA rank {config.rank}: {name} has rank {min(linear.weight.shape)}. Use a smaller one.")
    for whole in config.whole:
        if not any(is_within(name, whole) for name, _ in model.named_parameters()):
            raise ValueError(f"LoRA with {whole} trained whole: this model has none. Add it first, or leave it out.")
    model.requires_grad_(False)
    for name, linear in linears.items():
        model.set_submodule(name, LoRALinear(linear, config, generator))
    trained = lora_parameters(model, config)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def projections(model: nn.Module, config: LoRAConfig) -> Iterator[tuple[str, nn.Linear]]:
    """Full name and layer of every projection that `config` chooses, in the order of the model's modules."""
    for part in config.parts:
        module = getattr(model, part, None)
        if not isinstance(module, nn.Module):
            raise ValueError(f"LoRA on {part}: this model has none. Leave it out of the parts, or add it first.")
        found = 0
        for name, attention in module.named_modules(prefix=part):
            if not isinstance(attention, Attention):
                continue
            kind = "cross" if name.endswith("cross_attention") else "self"
            for projection in PROJECTIONS:
                if projection in config.targets or f"{kind}.{projection}" in config.targets:
                    yield f"{name}.to_{projection}", getattr(attention, f"to_{projection}")
                    found += 1
        if not found:
            raise ValueError(f"LoRA on {part}: it has no projection {' or '.join(config.targets)}.")


def is_update(name: str) -> bool:
    """Whether a parameter is A or B of an update."""
    return name.endswith((".lora_down.weight", ".lora_up.weight"))


def is_within(name: str, whole: str) -> bool:
    """Whether a parameter is the one of this name, or one of the module of this name."""
    return f"{name}.".startswith(f"{whole}.")


def lora_parameters(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Parameter]:
    """Every parameter of the LoRA by its full name: A and B of each projection, and what is trained whole."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if is_update(name) or any(is_within(name, whole) for whole in config.whole)
    }


def has_lora(module: nn.Module) -> bool:
    """Whether a module holds updates that are not merged."""
    return any(isinstance(part, LoRALinear) for part in module.modules())


def merge_lora(model: nn.Module) -> None:
    """Add every update to its weight, W + alpha / r B A, and make plain projections again."""
    for layer in _take_out(model):
        add_update(layer.weight, layer.lora_down.weight, layer.lora_up.weight, layer.scale)


def remove_lora(model: nn.Module) -> None:
    """Make plain projections again without their updates: every weight as it was before add_lora, bit for bit."""
    list(_take_out(model))


def _take_out(model: nn.Module) -> Iterator[LoRALinear]:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            model.set_submodule(name, layer.plain())
            yield layer


@torch.no_grad()
def add_update(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> None:
    """Add scale * B A to a weight (width_out, width_in) in place, summed in float32 at least.

    -scale takes it out again but for rounding: at most e / 2 (2 |W| + |scale B A|), with e the step of the weight's
    type at 1 (2^-23 in float32, 2^-10 in float16, 2^-7 in bfloat16), for each of the two sums is rounded once.

    down is A (r, width_in), up is B (width_out, r). Of a convolution of k x k, a row of A is a filter: weight
    (c_out, c_in, k, k), A (r, c_in, k, k), B (c_out, r, 1, 1); A's convolution, then B's 1 x 1, is that of their sum.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a, b = (matrix.to(weight.device, dtype).flatten(1) for matrix in (down, up))
    update = (b @ a).view(weight.shape)
    weight.copy_(weight.to(dtype) + scale * update)  # LoRA Eq. 3, W_0 x + B A x = (W_0 + B A) x


def lora_state(model: nn.Module, config: LoRAConfig) -> dict[str, Tensor]:
    """Every tensor of the LoRA by its full name."""
    return {name: parameter.detach() for name, parameter in lora_parameters(model, config).items()}


def lora_shapes(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a LoRA of this config has for a model without one."""
    updates = [*config.updates(name for name, _ in projections(model, config)), *config.modules]
    layers = {name: m.weight for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    unknown = [update.module for update in updates if update.module not in layers]
    if unknown:
        raise ValueError(f"LoRA on {', '.join(unknown[:3])}: of {len(unknown)} such modules this model has no layer.")
    shapes: dict[str, tuple[int, ...]] = {}
    for update in updates:
        shapes |= update_shapes(update, tuple(layers[update.module].shape))
    return shapes | {name: tuple(p.shape) for name, p in lora_parameters(model, config).items()}


def update_shapes(update: Update, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name and shape of A and B for a weight (width_out, width_in), or of a convolution (c_out, c_in, k, k)."""
    c_out, *c_in = weight
    return {
        f"{update.module}.lora_down.weight": (update.rank, *c_in),
        f"{update.module}.lora_up.weight": (c_out, update.rank, *(1 for _ in c_in[1:])),
    }
