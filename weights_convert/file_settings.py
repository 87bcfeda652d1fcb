"""What goes with a single file of weights beside its networks: a .yaml of CompVis, marks, and a noise schedule.

A1111, ComfyUI and Forge read NAME.yaml beside NAME.safetensors. Fields that a config of ours has a place for are read
here; those that say how the networks compute must say what ours do. Empty tensors v_pred and ztsnr mark a model that
predicts v, and a schedule that ends in pure noise; they count more than buffers, which merges copy from other models.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm_us.config import SD15, ModelConfig, ScheduleConfig
from ldm_us.diffusion.ddpm import Schedule, make_schedule
from ldm_us.files.checkpoint import NETWORKS, LazyTensor
from ldm_us.files.stored_tensor import shown
from ldm_us.files.yaml_fields import yaml_fields
from ldm_us.runtime.entry import note
from weights_convert.folder_settings import PIPELINE
from weights_convert.sources import Source
from weights_convert.summary import in_yaml

READ = ("parameterization", "linear_start", "linear_end", "timesteps", "scale_factor", "rescale_betas_zero_snr")
ENCODER = {"transformer_depth": "1", "num_heads": "", "num_head_channels": "-1", "use_scale_shift_norm": "false"}
AS_HERE = {  # part -> field -> its one value; num_heads is that of the config
    PIPELINE: {"beta_schedule": "linear"},
    "vae": {},
    "text": {"layer": "last"},
    "unet": ENCODER,
    "controlnet": ENCODER | {"global_average_pooling": "false", "only_mid_control": "false"},
}
KNOWN = {*READ, *(field for fields in AS_HERE.values() for field in fields)}
COMMON = {"timesteps", "layer", "num_heads"}  # names that a .yaml of something else may have
MODELSPEC = "modelspec.prediction_type"  # in the metadata of kohya's and other trainers' files
V_PRED, ZTSNR = "v_pred", "ztsnr"
MOST = 100_000  # timesteps


def with_file_config(
    config: ModelConfig,
    source: Source,
    prediction: str | None = None,
    parts: Collection[str] = (PIPELINE, *NETWORKS),
) -> ModelConfig:
    """`config` with what the file and the .yaml beside it say of schedule and parts; `prediction` wins over both.

    Raise ValueError, naming file and field, for what no model of ours can have.
    """
    path = description(source.path)
    said = {} if path is None else read_fields(path)
    for part in parts:
        for field, ours in AS_HERE[part].items():
            expected = ours or str(config.unet.heads)
            if said.get(field, expected) != expected:
                raise ValueError(f"{path}: {field} is {shown(said[field])}. Supported is {expected} alone.")
    schedule, scale = config.schedule, config.vae.scale
    try:
        if PIPELINE in parts:
            schedule = replace(
                schedule,
                prediction=prediction or said_prediction(said, source, schedule.prediction),
                zero_terminal_snr=schedule.zero_terminal_snr
                or ZTSNR in source.entries
                or said.get("rescale_betas_zero_snr") == "true",
                timesteps=int(positive(said, "timesteps", schedule.timesteps)),
                beta_start=positive(said, "linear_start", schedule.beta_start),
                beta_end=positive(said, "linear_end", schedule.beta_end),
            )
        if "vae" in parts:
            scale = positive(said, "scale_factor", scale)
    except ValueError as error:
        raise ValueError(f"{path or source.path}: {error}") from error
    if PIPELINE in parts:
        schedule = fit_schedule(schedule, source)
    return replace(config, schedule=schedule, vae=replace(config.vae, scale=scale))


def said_prediction(said: dict[str, str], source: Source, otherwise: str) -> str:
    """What the UNet predicts: as .yaml, mark and metadata say. Raise ValueError where they contradict each other."""
    named = source.metadata.get(MODELSPEC)
    sayings = {
        ".yaml": said.get("parameterization"),
        f"mark {V_PRED}": "v" if V_PRED in source.entries else None,
        MODELSPEC: {"epsilon": "eps", "v_prediction": "v"}.get(str(named), named),
    }
    found = {where: value for where, value in sayings.items() if value is not None}
    if len({*found.values()}) > 1:
        listed = ", ".join(f"{shown(value)} ({where})" for where, value in found.items())
        raise ValueError(f"what the UNet predicts is said to be {listed}. Choose with --prediction.")
    return next(iter(found.values()), otherwise)


def beside(path: Path) -> Path:
    """The .yaml that goes with a file of weights."""
    return path.with_suffix(".yaml")


def description(path: Path) -> Path | None:
    """The .yaml or .yml that lies beside a file of weights, in any case of letters. Raise ValueError for several."""
    near = (file for file in path.parent.iterdir() if file.stem == path.stem)
    found = sorted(file for file in near if file.suffix.lower() in (".yaml", ".yml") and file.is_file())
    if len(found) > 1:
        raise ValueError(f"{path}: {' and '.join(file.name for file in found)} lie beside it. Leave one of them.")
    return found[0] if found else None


def read_fields(path: Path) -> dict[str, str]:
    """The fields of a .yaml whose names are known here. Raise ValueError for one with two values."""
    said: dict[str, str] = {}
    found = yaml_fields(path)
    known = [(name, value) for name, value in found if name in KNOWN]
    if not {name for name, _ in found} & ({"model", *KNOWN} - COMMON):
        if known:
            note(f"{path}: no description of a model like Stable Diffusion; it is passed over.")
        return {}
    for name, value in known:
        if said.setdefault(name, value) != value:
            raise ValueError(f"{path}: {name} is {shown(said[name])} and {shown(value)}. Leave one of them.")
    return said


def positive(said: dict[str, str], name: str, otherwise: float) -> float:
    """A positive number of a .yaml."""
    try:
        value = float(said.get(name, otherwise))
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST or (name == "timesteps" and value != int(value)):
        raise ValueError(f"{name} is {shown(said[name])}, not a positive number. Correct it, or take the file away.")
    return value


def fit_schedule(config: ScheduleConfig, source: Source) -> ScheduleConfig:
    """`config`, or the schedule of the file's own buffers where that is another one that a model of ours can have."""
    said = {name: source.entries[name] for name in buffers(make_schedule(config)) if name in source.entries}
    if any(len(entry.shape) != 1 or not 2 <= entry.shape[0] <= MOST for entry in said.values()):
        raise ValueError(f"{source.path}: {', '.join(said)} are no noise schedule: no rows of numbers.")
    values = {name: entry.load() for name, entry in said.items()}
    for candidate in candidates(config, values) if values else ():
        ours = buffers(make_schedule(candidate))
        if not all(close(name, ours[name], value) for name, value in values.items()):
            continue
        if candidate.prediction != config.prediction:
            raise ValueError(
                f"{source.path}: its noise schedule ends in pure noise, which only a model that predicts v can start "
                "from. If it does, say so with --prediction v."
            )
        taken = replace(candidate, zero_terminal_snr=candidate.zero_terminal_snr or config.zero_terminal_snr)
        if taken != config:
            note(f"{source.path}: its own noise schedule is taken: {described(taken)}.")
        return taken
    if values:
        raise ValueError(
            f"{source.path}: its noise schedule ({', '.join(values)}) is not that of {described(config)}, and none of "
            "scaled linear betas. Only such can be imported."
        )
    return config


def candidates(config: ScheduleConfig, values: dict[str, Tensor]) -> Iterator[ScheduleConfig]:
    """Schedules that the buffers may be of: ours, it before its end was made noise, it after that, and other betas."""
    yield config
    yield replace(config, zero_terminal_snr=False)
    yield replace(config, zero_terminal_snr=True, prediction="v")
    name, value = next((name, value.double()) for name, value in values.items())
    alpha_bar = {"betas": (1 - value).cumprod(0), "sqrt_alphas_cumprod": value**2}.get(name, value)
    usable = (alpha_bar > 1e-3) & (alpha_bar <= 1)  # below, half precision has few digits
    if name not in ("betas", "alphas_cumprod", "sqrt_alphas_cumprod") or int(usable.sum()) < 3:
        return
    start, end = ends_of_betas(alpha_bar, usable)
    for digits in (2, 3, 4):
        ends = [float(f"{beta:.{digits}g}") for beta in (start, end)]
        if 0 < ends[0] < 1 and 0 < ends[1] < 1:
            count = len(alpha_bar)
            yield replace(config, timesteps=count, zero_terminal_snr=False, beta_start=ends[0], beta_end=ends[1])


def ends_of_betas(alpha_bar: Tensor, usable: Tensor) -> tuple[float, float]:
    """First and last of the scaled linear betas whose alpha_bar (T,) is nearest, by least squares of its logarithm.

    beta = a^2 (1 - u)^2 + a b 2 u (1 - u) + b^2 u^2 with u from 0 to 1; -log alpha_bar sums beta and what is small.
    """
    u = torch.linspace(0, 1, len(alpha_bar), dtype=torch.float64)
    terms = torch.stack([(1 - u) ** 2, 2 * u * (1 - u), u**2], dim=1)  # (T, 3)
    trust, small = alpha_bar[usable, None], torch.zeros_like(alpha_bar)
    for _ in range(4):
        target = -trust.log() - small.cumsum(0)[usable, None]
        weights = torch.linalg.lstsq(trust * terms.cumsum(0)[usable], trust * target).solution[:, 0]
        beta = (terms @ weights).clamp(0, 0.9)
        small = -torch.log1p(-beta) - beta
    return float(weights[0]), float(weights[2])


def buffers(schedule: Schedule) -> dict[str, Tensor]:
    """The schedule as a CompVis file holds it, under its names; what follows from these is not looked at."""
    return {
        "betas": schedule.beta,
        "alphas_cumprod": schedule.alpha_bar,
        "alphas_cumprod_prev": torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]]),
        "sqrt_alphas_cumprod": schedule.alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - schedule.alpha_bar).sqrt(),
    }


def close(name: str, ours: Tensor, theirs: Tensor) -> bool:
    """Whether two schedules are equal but for rounding: of the type, and of a product of 1000 factors in float32.

    Some programs end in an alpha_bar of 5e-8 for 0: its root is 2.2e-4.
    """
    rounding = max(5e-4, 4 * torch.finfo(theirs.dtype).eps) if theirs.is_floating_point() else 0.0
    least = 3e-4 if name == "sqrt_alphas_cumprod" else 1e-7
    return ours.shape == theirs.shape and torch.allclose(ours, theirs.double(), rtol=rounding, atol=least)


def described(config: ScheduleConfig) -> str:
    """A schedule in words."""
    end = ", ending in pure noise" * config.zero_terminal_snr
    return f"{config.timesteps} scaled linear betas from {config.beta_start:g} to {config.beta_end:g}{end}"


def yaml_beside(out: Path, config: ModelConfig) -> dict[Path, str]:
    """The .yaml beside a CompVis file of this model and its text: where one is needed, or there and to be replaced."""
    if in_yaml(config) == in_yaml(SD15) and not beside(out).exists():
        return {}
    text = (
        Path(__file__)
        .with_name("compvis.yaml")
        .read_text(encoding="ascii")
        .format(
            **vars(config),
            latent_size=config.image_size // config.vae.downsampling,
            attention=[2**level for level, attends in enumerate(config.unet.attention) if attends][::-1],
            unet_multipliers=[*config.unet.multipliers],
            vae_multipliers=[*config.vae.multipliers],
        )
    )
    return {beside(out): text}


def marks(config: ScheduleConfig) -> list[LazyTensor]:
    """The empty tensors of a CompVis file that say what the model predicts, and how its schedule ends."""
    names = [V_PRED] * (config.prediction == "v") + [ZTSNR] * config.zero_terminal_snr
    return [LazyTensor(name, (0,), torch.float32, lambda: torch.zeros(0)) for name in names]
