"""What a user may change per run of train.py, and which of it must stay the same when a run resumes."""

import math
from dataclasses import dataclass
from pathlib import Path

from ldm_us.data.mixing import check_weights
from ldm_us.networks.lora import PROJECTIONS, LoRAConfig
from ldm_us.runtime.checks import check_device, check_seed
from ldm_us.training.log import summary_writer

STAGES = ("vae", "unet", "controlnet")
VAE_LR_PER_IMAGE = 4.5e-6  # LDM's base learning rate, times the images of a step
DIFFUSION_LR = 1e-5


@dataclass(frozen=True)
class TrainOptions:
    """One run. What changes the numbers of a run may not change when it resumes; see FREE."""

    stage: str
    data: tuple[Path, ...]
    data_weights: tuple[float, ...] | None
    weights: Path | None
    preset: str | None
    out: Path
    steps: int | None
    epochs: float | None
    batch: int
    accumulate: int
    lr: float | None
    warmup: int
    weight_decay: float
    clip: float
    ema: float
    flip: bool
    held_out: float
    seed: int
    size: int | None
    # what the unet and controlnet stages learn
    caption_dropout: float
    objective: str | None
    min_snr: float | None
    offset_noise: float
    train_text: bool
    text_warmup: int
    # less to train, less to hold
    lora: int | None
    lora_alpha: float | None
    lora_targets: tuple[str, ...] | None
    prompt_tokens: int
    decoder_only: bool
    unlock_decoder: bool
    optimizer: str
    gradient_checkpointing: bool
    # speed and several processes
    precision: str
    device: str
    cache: Path
    workers: int
    channels_last: bool
    compile: bool
    shard: bool
    processes: int  # that torchrun started
    # what is kept and shown
    log_every: int
    save_every: int
    sample_every: int
    validate_every: int
    tensorboard: bool
    restart: bool
    dry_run: bool

    @property
    def images_per_step(self) -> int:
        """The global batch: what one optimiser step sees, all processes together."""
        return self.batch * self.accumulate * self.processes

    @property
    def learning_rate(self) -> float:
        """--lr, or the stage's default."""
        if self.lr is not None:
            return self.lr
        return VAE_LR_PER_IMAGE * self.images_per_step if self.stage == "vae" else DIFFUSION_LR

    @property
    def trains_text(self) -> bool:
        """Whether the text states change while the stage trains."""
        return self.train_text or self.prompt_tokens > 0

    @property
    def adapter(self) -> LoRAConfig | None:
        """What is trained instead of whole weights: low-rank updates, learned vectors before the words, or both."""
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
    *("device", "cache", "workers", "batch", "accumulate", "processes", "shard", "compile", "channels_last", "dry_run"),
    "gradient_checkpointing",
)


def check_options(options: TrainOptions) -> None:
    """Raise ValueError for numbers that make no sense and options that do not go together."""
    check_numbers(options)
    check_diffusion_options(options)
    check_adapter(options)
    check_together(options)
    check_seed(options.seed)
    check_device(options.device)
    if options.tensorboard:
        summary_writer()
    if options.data_weights is not None:
        check_weights([1] * len(options.data), options.data_weights)


def check_numbers(options: TrainOptions) -> None:
    """Each number by itself."""
    at_least = {"batch": 1, "accumulate": 1, "warmup": 0, "weight_decay": 0, "workers": 0, "prompt_tokens": 0}
    at_least |= {"log_every": 1, "save_every": 1, "sample_every": 0, "validate_every": 0, "text_warmup": 0}
    for name, least in at_least.items():
        if not getattr(options, name) >= least:
            raise ValueError(f"{flag(name)} {getattr(options, name)}: use {least} or more.")
    for name in ("held_out", "ema"):
        if not 0.0 <= getattr(options, name) < 1.0:
            raise ValueError(f"{flag(name)} {getattr(options, name)}: use a number from 0 up to below 1.")
    if not options.weight_decay < math.inf:
        raise ValueError(f"--weight-decay {options.weight_decay}: use a finite number.")
    for name in ("steps", "epochs", "lr", "clip", "size", "min_snr"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{flag(name)} {value}: use a finite number above 0.")
    if not 0.0 <= options.caption_dropout <= 1.0:
        raise ValueError(f"--caption-dropout {options.caption_dropout}: use 0 (none) to 1 (all: no text is learned).")


def check_diffusion_options(options: TrainOptions) -> None:
    """Refuse what the loss of the vae stage has no use for, and offset noise that is no number."""
    if not 0 <= options.offset_noise < math.inf:
        raise ValueError(f"--offset-noise {options.offset_noise}: use 0 (none) or a finite number above, such as 0.1.")
    given = {"--objective": options.objective, "--min-snr": options.min_snr, "--offset-noise": options.offset_noise}
    for name, value in given.items():
        if value and options.stage == "vae":
            raise ValueError(f"{name} belongs to the unet and controlnet stages: the vae stage predicts no noise.")


def check_adapter(options: TrainOptions) -> None:
    """Refuse LoRA and prompt tuning where they have nothing to work on, or what cannot be combined with them."""
    if options.lora is not None and options.stage == "vae":
        raise ValueError("--lora belongs to the unet and controlnet stages; --decoder-only is what the vae stage has.")
    for name in ("lora_alpha", "lora_targets"):
        if options.lora is None and getattr(options, name) is not None:
            raise ValueError(f"{flag(name)} belongs to a LoRA: add --lora RANK.")
    if options.prompt_tokens and options.train_text:
        raise ValueError("--prompt-tokens keeps the text encoder as it is: leave --train-text away.")
    if options.adapter is None:  # raises for a rank or an alpha that makes no sense
        return
    for name in ("shard", "unlock_decoder"):
        if getattr(options, name):
            raise ValueError(f"{flag(name)} trains whole weights: leave --lora and --prompt-tokens away, or it.")
    if options.weights is None:
        raise ValueError("--lora and --prompt-tokens adapt a trained model: give --weights instead of --preset.")


def check_together(options: TrainOptions) -> None:
    """Refuse options of another stage, and those that need another option."""
    of_stage = {"train_text": "unet", "prompt_tokens": "unet", "decoder_only": "vae", "unlock_decoder": "controlnet"}
    for name, stage in of_stage.items():
        if getattr(options, name) and options.stage != stage:
            raise ValueError(f"{flag(name)} belongs to the {stage} stage, not to {options.stage}.")
    if options.text_warmup and (not options.train_text or options.lora):
        raise ValueError(f"--text-warmup {options.text_warmup} trains the whole text encoder: add --train-text alone.")
    if options.decoder_only and options.weights is None:
        raise ValueError("--decoder-only keeps the encoder of --weights, and a random one is no use: leave it away.")
    if len({folder.resolve() for folder in options.data}) < len(options.data):
        raise ValueError("--data names one folder twice: give each once, and --data-weights to draw it more often.")
    if not options.shard:
        return
    if options.processes == 1:
        raise ValueError("--shard splits a model over processes: start several with torchrun --nproc-per-node N.")
    if options.stage == "vae" or options.optimizer != "adamw" or options.compile:
        raise ValueError("--shard takes the stages unet and controlnet, --optimizer adamw, and no --compile.")
    if options.channels_last:
        raise ValueError("--shard splits weights in their usual layout: leave --channels-last away.")


def flag(name: str) -> str:
    """The option of a field: min_snr -> --min-snr."""
    return f"--{name.replace('_', '-')}"
