"""Every number that fixes the model: one frozen dataclass a part, its defaults those of Stable Diffusion 1.5."""

import dataclasses
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PREDICTIONS = ("eps", "v")
SPACINGS = ("leading", "trailing")
SAMPLERS = ("ddim", "ddpm", "dpm")  # here, for command lines name these before PyTorch is imported
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")  # likewise, as all of these
ASPECTS = ("bucket", "letterbox", "crop", "squash")  # how images get their sizes: data/framing.py
AUGMENTATIONS = ("gain", "gamma", "tgc", "zoom", "shift", "turn")  # likewise; see data/augment.py
MASK, PICTURE = ("mask",), ("picture",)  # hints in three equal channels, as the released ControlNets have them
PROJECTIONS = ("q", "k", "v", "out")  # of an attention, that a LoRA updates
TARGETS = (*PROJECTIONS, *(f"{kind}.{projection}" for kind in ("self", "cross") for projection in PROJECTIONS))
STRENGTH = 0.6  # of an edit: share of the steps that are walked
ITERATIONS = 2  # of an inversion: model calls a step beyond the first; what more of them bring: docs/history.md
BUNDLED = Path(__file__).with_name("weights") / "us128.safetensors"  # trained on phantoms; see the card beside it


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise levels in training and the conventions of sampling. Source: CompVis v1-inference.yaml and its samplers."""

    timesteps: int = 1000  # T
    beta_start: float = 0.00085  # beta_1
    beta_end: float = 0.012  # beta_T; the square roots of the betas are linear in t
    first_timestep: int = 1  # the last step's t: SD 1.5 samples at 981, ..., 21, 1
    guidance: float = 7.5  # weight of the text in sample.py unless told
    final_alpha_bar_one: bool = False  # False: DDIM's last step lands on alpha_bar[0]; True: on 1, a clean z_0
    start_prior: int = 0  # rank of the covariance of the start prior; 0: sampling starts from N(0, I)
    prior_prompts: tuple[str, ...] = ()  # prompts whose images have a start prior of their own
    prediction: str = "eps"  # what the UNet's output means: the noise, or "v" (Progressive Distillation, 2202.00512)
    zero_terminal_snr: bool = False  # True: the last alpha_bar is 0, pure noise (arXiv 2305.08891); needs "v"
    spacing: str = "leading"  # of the sampled timesteps: from first_timestep up, or "trailing": from T - 1 down

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r}: use one of {', '.join(PREDICTIONS)}.")
        if self.spacing not in SPACINGS:
            raise ValueError(f"spacing {self.spacing!r} of timesteps: use one of {', '.join(SPACINGS)}.")
        if self.zero_terminal_snr and self.timesteps < 2:
            raise ValueError("zero_terminal_snr needs 2 timesteps or more: one with signal, and one of noise alone.")
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "prediction eps with zero_terminal_snr: the noise in pure noise says nothing of an image. Use v."
            )


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder between pixels and latents. Source: LDM section 3.1 and v1-inference.yaml."""

    width: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # channels / width per level; each level but the last halves h and w
    res_blocks: int = 2  # per level in the encoder, one more in the decoder
    latent_channels: int = 4  # c
    groups: int = 32  # of every GroupNorm
    whitened: bool = False  # whether the vae stage ends with each channel of the latents at mean 0 and std 1
    grain: bool = False  # whether the model file holds the grain that the decoder's output lacks
    grain_bands: int = 3  # of depth, in which it was measured
    scale: float = 0.18215  # 1 / std of the latents: encode multiplies, decode divides
    noise_levels: int = 0  # finest levels of the decoder whose residual blocks add noise of a learned gain; 0: SD 1.5

    def __post_init__(self) -> None:
        if self.grain_bands < 1:
            raise ValueError(f"grain_bands {self.grain_bands}: grain is measured in 1 band of depth or more.")

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side: 8 for SD 1.5."""
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True)
class TextConfig:
    """The text tower of CLIP ViT-L/14. Source: CLIP (arXiv 2103.00020), section 2.4."""

    vocabulary: int = 49408  # tokens of CLIP's byte-pair encoding
    length: int = 77  # n, tokens a prompt is padded or cut to
    width: int = 768  # d
    heads: int = 12
    layers: int = 12
    mlp_width: int = 3072
    prompt_tokens: int = 0  # N learned vectors before the words of every prompt
    chunks: int = 1  # k: a longer prompt is read as k texts of `length` tokens each, as A1111 and kohya's scripts do

    @property
    def read(self) -> int:
        """The most tokens of a prompt that count, start and end of text included."""
        return self.chunks * (self.length - 2 - self.prompt_tokens) + 2


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser. Source: LDM section 3.3, v1-inference.yaml."""

    latent_channels: int = 4
    width: int = 320  # channels at full latent resolution
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # channels / width per level
    attention: tuple[bool, ...] = (True, True, True, False)  # levels with transformers
    res_blocks: int = 2  # per level in the encoder, one more in the decoder
    heads: int = 8  # at every level
    context_width: int = 768  # d of the text states
    groups: int = 32  # of every GroupNorm


@dataclass(frozen=True)
class ControlConfig:
    """The hint network of ControlNet. Source: cldm_v15.yaml and cldm.py, which the released weights follow."""

    hint: tuple[str, ...] = MASK  # or PICTURE, or the names of the structures of a mask, a channel each
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)  # each step halves h and w: as many steps as the VAE has
    scale: float = 1.0  # weight of a mask in sample.py unless told
    guidance: float | None = None  # weight of the text in sample.py where there is a mask; None: as without


@dataclass(frozen=True)
class ModelConfig:
    """A whole latent diffusion model."""

    name: str = "sd15"
    image_size: int = 512  # pixels along one side that the model was made for
    schedule: ScheduleConfig = ScheduleConfig()
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    control: ControlConfig = ControlConfig()

    def guidance(self, masked: bool) -> float:
        """Weight of the text in sample.py unless told; with a mask, strong text draws lesions beside the masked one."""
        return self.control.guidance if masked and self.control.guidance is not None else self.schedule.guidance

    @property
    def size_multiple(self) -> int:
        """Pixels that the image size must be a multiple of, for autoencoder and denoiser to halve it: 64 for SD 1.5."""
        return int(self.vae.downsampling * 2 ** (len(self.unet.multipliers) - 1))


SD15 = ModelConfig()

# 128x128 on two CPU cores. Downsampling by 4 keeps the speckle that 8 would lose; fewer groups than 32, so that a
# norm over few channels is not an instance norm.
US128 = ModelConfig(
    name="us128",
    image_size=128,
    schedule=ScheduleConfig(guidance=3.0),
    vae=VAEConfig(width=16, multipliers=(1, 4, 4), res_blocks=1, groups=8),
    text=TextConfig(width=32, heads=4, layers=2, mlp_width=128),
    unet=UNetConfig(
        width=32,
        multipliers=(1, 2, 2),
        attention=(False, True, True),
        res_blocks=1,
        heads=4,
        context_width=32,
        groups=8,
    ),
    control=ControlConfig(hint_channels=(16, 32, 64), scale=2.0, guidance=1.0),  # measured: docs/history.md
)

# The same with a schedule that ends in pure noise, where sampling starts (arXiv 2305.08891), and white latents.
US128_V = replace(
    US128,
    name="us128_v",
    schedule=replace(US128.schedule, prediction="v", zero_terminal_snr=True, spacing="trailing"),
    vae=replace(US128.vae, whitened=True),
)

# Four levels and every kind of layer of SD 1.5, at a size for tests.
TINY = ModelConfig(
    name="tiny",
    image_size=64,
    vae=VAEConfig(width=32),
    text=TextConfig(width=32, heads=4, layers=2, mlp_width=128),
    unet=UNetConfig(width=32, heads=4, context_width=32),
)

PRESETS = {"sd15": SD15, "us128": US128, "us128_v": US128_V, "tiny": TINY}  # the configs that --preset names

# What the fields of a config in a file may be: one that asks for 10^9 layers is refused before anybody builds them. The
# limits lie far above any Stable Diffusion 1.x; they only keep the time and memory of building a model bounded.
LIMITS = {"timesteps": 100_000, "vocabulary": 1_000_000, "layers": 100, "chunks": 8, "res_blocks": 10}
LARGEST = 100_000  # of all other fields: widths, sizes, heads
LONGEST = 8  # levels, prompts with a start prior of their own
LONGEST_TEXT = 100  # characters


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, ready for JSON."""
    return dataclasses.asdict(config)


def config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Undo config_to_dict. Raise ValueError for a field that this version does not know, or a value it cannot have.

    A field that is missing takes its default: the file is older than the field. So the default of a new field must be
    what the code did before it had that field.
    """
    config: ModelConfig = _build(ModelConfig, values, where="config")
    check_limits(config)
    return config


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {values!r} instead of a table of fields. Was the file changed by hand?")
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise ValueError(f"{where}: unknown fields {unknown}. Was it made by a newer version? Use that one, or update.")
    built = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name in values:
        if dataclasses.is_dataclass(defaults[name]):
            built[name] = _build(type(defaults[name]), values[name], f"{where}.{name}")
    return kind(**built)


def check_limits(config: Any, where: str = "config") -> None:
    """Raise ValueError, naming the field, for a value of another type than its default's or beyond its limit."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        name = f"{where}.{field.name}"
        if dataclasses.is_dataclass(default):
            if type(value) is not type(default):
                raise ValueError(f"{name} is no table of fields.")
            check_limits(value, name)
        elif isinstance(default, tuple):
            least = min(1, len(default))
            if not isinstance(value, tuple) or not least <= len(value) <= LONGEST:
                raise ValueError(f"{name} is no list of {least} to {LONGEST} values.")
            for item in value:
                _check_value(name, item, default[0] if default else "", LARGEST)
        elif not (default is None and value is None):
            _check_value(name, value, 0.0 if default is None else default, LIMITS.get(field.name, LARGEST))


def _check_value(name: str, value: Any, default: Any, limit: int) -> None:
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            raise ValueError(f"{name} is a {type(value).__name__}, not a {type(default).__name__}.")
        if isinstance(value, str) and not (len(value) <= LONGEST_TEXT and value.isprintable()):
            raise ValueError(f"{name} is a text that is too long to show, or has control characters.")
    elif isinstance(default, int):
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"{name} is no whole number from 0 to {limit}.")
    elif type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} is no finite number.")
