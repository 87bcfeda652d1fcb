"""Whether a run fits its GPU, and if not, what would: said before the first step and before a folder is made."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ldm_us.config import ModelConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.training.memory.peak import peak_bytes
from ldm_us.training.options import TrainOptions
from ldm_us.training.start import needed_parts

GIB = 2**30
OWN = 1.5 * GIB  # CUDA's context and the workspaces of its libraries
CONTEXT = 0.5 * GIB  # of these what a process takes before its first tensor
USABLE = 0.95  # of the rest; some is lost between blocks


def fitted(model: LatentDiffusion, options: TrainOptions) -> tuple[TrainOptions, str]:
    """The options, and a line about memory: on a GPU always, else where --dry-run asks for it.

    Unless told, gradients are checkpointed where a GPU is too small without: a third more to compute, and no weight or
    average has to travel, as it would with an average on the CPU. Raise ValueError where the run does not fit.
    """
    on_gpu = options.device.startswith("cuda")
    if options.shard or not (on_gpu or options.dry_run):
        return options, ""
    return fitted_to(model.config, options, room(model, options) if on_gpu else None)


def room(model: LatentDiffusion, options: TrainOptions) -> float:
    """Bytes of the GPU that a step may fill: without what other processes hold, and networks that it does not need."""
    free, total = torch.cuda.mem_get_info(options.device)
    ours = torch.cuda.memory_reserved(options.device) + CONTEXT
    needed = tuple(f"{part}." for part in needed_parts(options))
    idle = [p.nbytes for name, p in model.named_parameters() if not (p.is_meta or name.startswith(needed))]
    return min(free + ours, total) - sum(idle)


def fitted_to(config: ModelConfig, options: TrainOptions, total: float | None) -> tuple[TrainOptions, str]:
    """The same for a GPU with so many bytes; None: of any size."""
    peak = peak_bytes(config, options)
    said = f"about {in_gib(peak)} of memory in a step"
    if total is None or fits(peak, total):
        return options, said
    too_much = f"{said}, and {options.device} has {in_gib(total)} for it"
    if options.gradient_checkpointing is None:
        options = replace(options, gradient_checkpointing=True)
        less = peak_bytes(config, options)
        if fits(less, total):
            return options, f"{too_much}: so with --gradient-checkpointing, about {in_gib(less)}"
    for words, other in ways(options):
        if fits(less := peak_bytes(config, other), total):
            raise ValueError(f"{too_much}. What would fit: {words}, about {in_gib(less)}.")
    raise ValueError(
        f"{too_much}, too little for this model. Use a smaller --size, a larger GPU, or --shard on several."
    )


def fits(peak: int, total: float) -> bool:
    """Whether a step with this peak has room on a GPU of so many bytes."""
    return peak <= USABLE * (total - OWN)


def in_gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / GIB:.1f} GiB"


def ways(options: TrainOptions) -> Iterator[tuple[str, TrainOptions]]:
    """Options that need less memory, what changes least first, each on top of those before."""
    words = "--gradient-checkpointing"
    options = replace(options, gradient_checkpointing=True)
    yield words, options
    while options.batch % (2 * options.processes) == 0:
        options = replace(options, batch=options.batch // 2, accumulate=options.accumulate * 2)
        cut = f"{words} --batch {options.batch} --accumulate {options.accumulate}"
        yield cut, options
    words = f"{words} --batch {options.batch} --accumulate {options.accumulate}"
    if options.adapter is None:
        options = replace(options, optimizer="adafactor")
        yield f"{words} --optimizer adafactor", options
        if options.stage != "vae" and options.weights is not None and not options.unlock_decoder:
            yield f"{words} --lora 8", replace(options, lora=8, optimizer="adamw")
