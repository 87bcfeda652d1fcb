"""What a user may change per run of train.py, and which of it must stay the same when a run resumes.

The paper states no hyper-parameters: the defaults are ours, after the field's.
"""

# ruff: noqa: RUF009 - option() is dataclasses.field()

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_us.config import ASPECTS, AUGMENTATIONS, LIMITS, PRECISIONS, PREDICTIONS, PRESETS, PROJECTIONS, TARGETS

if TYPE_CHECKING:  # a command line is read before PyTorch is imported
    from ldm_us.networks.lora import LoRAConfig

STAGES = ("vae", "unet", "controlnet")
OPTIMIZERS = ("adamw", "adafactor", "adamw8bit")
ALL_OR = ("all", *AUGMENTATIONS)
LR_SCHEDULES = ("constant", "cosine")
PERCEPTUAL = ("judge", "efficientnet_lite0")
VAE_LR_PER_IMAGE = 4.5e-6  # LDM's base learning rate, times the images of a step
DIFFUSION_LR = 1e-5
CAPTION_DROPOUT = {"vae": 0.1, "unet": 0.1, "controlnet": 0.5}  # SD 1.5's model card; ControlNet, section 3.3
FIRST_STAGE = ("adversarial", "adversarial_start", "perceptual", "perceptual_network", "noise_levels")  # vae stage only

Bound = tuple[str, Callable[[float], bool]]  # the numbers that make sense, in words and as a test
ANY: Bound = ("any", lambda value: True)
FROM_0: Bound = ("0 or more", lambda value: value >= 0)
FROM_1: Bound = ("1 or more", lambda value: value >= 1)
FINITE: Bound = ("0 (none) or a finite number above, such as 0.1", lambda value: 0 <= value < math.inf)
ABOVE_0: Bound = ("a finite number above 0", lambda value: 0 < value < math.inf)
BELOW_1: Bound = ("a number from 0 up to below 1", lambda value: 0 <= value < 1)
CHUNKS: Bound = (f"1 to {LIMITS['chunks']} chunks of 75 tokens", lambda value: 1 <= value <= LIMITS["chunks"])
SHARE: Bound = ("0 (none) to 1 (all: no text is learned)", lambda value: 0 <= value <= 1)


def option(
    meaning: str, default: Any = None, metavar: str | None = None, bound: Bound = ANY, among: Sequence[str] = ()
) -> Any:
    """A field of TrainOptions: the help of its option, the default (... where it must be given), and what it may be."""
    about = {"help": meaning, "default": default, "metavar": metavar, "bound": bound, "among": among}
    return field(metadata=about)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One run: a field for each option. What changes the numbers of a run may not change when it resumes; see FREE.

    A type is that of the option, a tuple takes one value or more, and a bool that is not off by default has a --no-.
    """

    stage: str
    data: tuple[Path, ...] = option("datasets; see `python -m ldm_us.data audit`", ..., "DIR")
    data_weights: tuple[float, ...] | None = option("shares of the datasets (all images alike)", None, "W")
    class_weights: tuple[str, ...] | None = option("shares of the classes: equal, or benign=1 malignant=2", None, "C=W")
    weights: Path | None = option("start from a model.safetensors", None, "FILE")
    preset: str | None = option(f"random weights: {', '.join(PRESETS)}; with --weights of the new part", None, "NAME")
    out: Path = option("folder of the run, new or to go on with", ..., "RUN")
    steps: int | None = option("optimiser steps, those of earlier calls included", None, "N", ABOVE_0)
    epochs: float | None = option("or passes over the data", None, "N", ABOVE_0)
    batch: int = option("images at a time, of all processes together (%(default)s)", 4, "N", FROM_1)
    accumulate: int = option("batches per optimiser step (%(default)s)", 1, "N", FROM_1)
    lr: float | None = option(f"peak (vae {VAE_LR_PER_IMAGE} x images a step, else {DIFFUSION_LR})", None, "X", ABOVE_0)
    warmup: int = option("steps of linear warm-up (%(default)s)", 100, "N", FROM_0)
    lr_schedule: str | None = option("after the warm-up; cosine falls to 0 (constant)", among=LR_SCHEDULES)
    text_lr: float | None = option("peak for the text encoder, where that is trained (--lr)", None, "X", ABOVE_0)
    weight_decay: float = option("(%(default)s)", 1e-2, "X", FINITE)
    clip: float = option("largest gradient norm (%(default)s)", 1.0, "X", ABOVE_0)
    ema: float = option("decay of the averaged weights, 0: none (%(default)s)", 0.9999, "X", BELOW_1)
    flip: bool = option("mirror half of the images, masks with them", True)
    augment: tuple[str, ...] | None = option("vary images and masks (not); no latent is cached then", among=ALL_OR)
    held_out: float = option("share kept for evaluation (%(default)s)", 0.1, "P", BELOW_1)
    seed: int = option("of weights, order and noise (%(default)s)", 0, "N")
    size: int | None = option("side of the training images (the preset's)", None, "PIXELS", ABOVE_0)
    aspect: str = option("sizes of the images' own aspects, bars, cut, squashed (bucket)", among=ASPECTS)
    # what the unet and controlnet stages learn
    caption_dropout: float = option("share of empty prompts (unet 0.1, controlnet 0.5)", None, "P", SHARE)
    objective: str | None = option("the denoiser's output (that of the start, else eps)", among=PREDICTIONS)
    min_snr: float | None = option("weigh noise levels, usually 5 (none: all count the same)", None, "GAMMA", ABOVE_0)
    offset_noise: float = option("noise per channel, added (%(default)s)", 0.0, "X", FINITE)
    train_text: bool = option("unet stage: train the text encoder too, as LDM does from scratch", False)
    captions: str | None = option("with BI-RADS words of BUS-BRA's and BrEaST's tables", among=("findings",))
    long_prompts: int | None = option("read captions in N chunks of 75 tokens (as the start)", None, "N", CHUNKS)
    text_warmup: int = option("contrastive steps first, for a random text encoder", 0, "N", FROM_0)
    # what the vae stage learns beside L1 and KL; None is off, as in the config.json of a run that is older than these
    adversarial: float | None = option("weight of the discriminator, LDM's is 0.5 (none)", None, "X", ABOVE_0)
    adversarial_start: int | None = option("steps before that acts, and learns (0)", None, "N", FROM_0)
    perceptual: float | None = option("weight of a distance of features, LDM's is 1 (none)", None, "X", ABOVE_0)
    perceptual_network: str | None = option(
        "whose features (judge); those of efficientnet_lite0 are further apart: weigh them less", among=PERCEPTUAL
    )
    noise_levels: int | None = option("finest decoder levels that add noise (those of the start)", None, "N", FROM_1)
    # less to train, less to hold in memory
    lora: int | None = option("train low-rank updates of the attention alone", None, "RANK")
    lora_alpha: float | None = option("scale of the updates, times 1 / RANK (RANK)", None, "X")
    lora_targets: tuple[str, ...] | None = option("q k v out self.q ... (q k v out)", None, "P", among=TARGETS)
    prompt_tokens: int = option("unet stage: learn N vectors before the words alone", 0, "N", FROM_0)
    decoder_only: bool = option("vae stage: train what decodes the latents, and leave those", False)
    unlock_decoder: bool = option("controlnet stage: train the UNet's decoder too, at a lower --lr", False)
    optimizer: str = option("the others need less memory (%(default)s)", "adamw", among=OPTIMIZERS)
    gradient_checkpointing: bool | None = option("compute activations twice, keep none (if a GPU is too small)", None)
    # speed, and several processes under torchrun; no figure changes beyond rounding
    precision: str = option("half: bf16, else fp16 (%(default)s)", "fp32", among=PRECISIONS)
    device: str = option("cpu, cuda, cuda:1 (a GPU, if any)", "auto")
    cache: Path = option("of latents, text states and decoded data (cache, beside RUN)", None, "DIR")
    workers: int = option("processes that prepare batches (2 with a GPU, else 0)", None, "N", FROM_0)
    channels_last: bool = option("memory layout (yes with a GPU, else no)", None)
    compile: bool = option("let torch.compile fuse the networks: slow first steps", False)
    shard: bool = option("split weights and optimiser over the processes (FSDP2)", False)
    processes: int  # no option: that torchrun started
    # what is kept and shown
    log_every: int = option("steps per line of log.jsonl (%(default)s)", 10, "N", FROM_1)
    save_every: int = option("steps per resumable state (%(default)s)", 500, "N", FROM_1)
    sample_every: int = option("steps per sample grid, 0 for none (%(default)s)", 500, "N", FROM_0)
    validate_every: int = option("steps per validation, 0 for none (%(default)s)", 500, "N", FROM_0)
    keep_every: int = option("steps per model in RUN/kept, to choose from, 0 for none (%(default)s)", 0, "N", FROM_0)
    tensorboard: bool = option("log to RUN/tensorboard as well (needs the extra logs)", False)
    restart: bool = option("begin again; the run in --out is renamed, not deleted", False)
    dry_run: bool = option("print configuration and parameter counts, and stop", False)

    @property
    def images_per_step(self) -> int:
        """What one optimiser step sees, all processes together."""
        return self.batch * self.accumulate

    @property
    def images_at_once(self) -> int:
        """What one process computes with at a time: its share of --batch."""
        return self.batch // self.processes

    def total_steps(self, images: int) -> int:
        """--steps, or --epochs of so many images in steps."""
        return self.steps or max(1, math.ceil((self.epochs or 0) * images / self.images_per_step))

    def reads(self, step: int) -> bool:
        """Whether losses are read at a step: for the log, or before what rests on them is shown or saved."""
        several = (self.log_every, self.validate_every, self.sample_every, self.save_every, self.keep_every)
        return any(every and step % every == 0 for every in several)

    @property
    def learning_rate(self) -> float:
        """--lr, or the stage's default."""
        if self.lr is not None:
            return self.lr
        return VAE_LR_PER_IMAGE * self.images_per_step if self.stage == "vae" else DIFFUSION_LR

    @property
    def variations(self) -> tuple[str, ...]:
        """Which variations --augment makes."""
        return AUGMENTATIONS if "all" in (self.augment or ()) else self.augment or ()

    @property
    def trains_text(self) -> bool:
        """Whether the text states change while the stage trains."""
        return self.train_text or self.prompt_tokens > 0

    @property
    def adapter(self) -> "LoRAConfig | None":
        """What is trained instead of whole weights: low-rank updates, learned vectors before the words, or both."""
        from ldm_us.networks.lora import LoRAConfig

        full = ("text.prompt",) if self.prompt_tokens else ()
        if self.lora is None:
            return LoRAConfig(parts=(), full=full) if full else None
        alpha = float(self.lora) if self.lora_alpha is None else self.lora_alpha
        parts = (self.stage, "text") if self.train_text else (self.stage,)
        return LoRAConfig(self.lora, alpha, parts, self.lora_targets or PROJECTIONS, full)


# A resumed run may differ in these: how long it runs, where, how the work is cut up, and what it shows. Another device
# or another cut of the same global batch (images_per_step, which is fixed) rounds differently.
FREE = (
    *("out", "steps", "epochs", "log_every", "save_every", "sample_every", "validate_every", "tensorboard", "restart"),
    "keep_every",
    *("device", "cache", "workers", "batch", "accumulate", "processes", "shard", "compile", "channels_last", "dry_run"),
    "gradient_checkpointing",
)


def flag(name: str) -> str:
    """The option of a field: min_snr -> --min-snr."""
    return f"--{name.replace('_', '-')}"
