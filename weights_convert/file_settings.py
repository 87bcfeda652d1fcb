"""What goes with a single file of weights beside its networks: a .yaml of CompVis, marks, and a noise schedule.

A1111, ComfyUI and Forge read NAME.yaml beside NAME.safetensors. The lines of it that a config of ours has a place for
are read here, those that say how the networks compute must say what ours do; a parser of YAML is not needed for them.
Empty tensors v_pred and ztsnr mark a model that predicts v, and a schedule that ends in pure noise.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ldm_us.config import SD15, ModelConfig, ScheduleConfig
from ldm_us.diffusion.ddpm import Schedule, make_schedule
from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT, shown
from weights_convert.sources import Source
from weights_convert.summary import note

LINE = re.compile(r"""^\s*(\w+)\s*:\s*(?:"([^"]*)"|'([^']*)'|([^\s#"']+))\s*(?:#.*)?$""")
READ = ("parameterization", "linear_start", "linear_end", "timesteps", "scale_factor", "rescale_betas_zero_snr")
AS_HERE = {"beta_schedule": "linear", "transformer_depth": "1", "layer": "last", "num_heads": ""}  # num_heads: below
# Fields of a config that a sampler chooses anew, or that training alone reads, and those that the .yaml of an export
# says; all others must be known to use the weights.
OF_SAMPLING = {
    "schedule": ("first_timestep", "guidance", "final_alpha_bar_one", "spacing"),
    "vae": ("whitened",),
    "control": ("scale", "guidance"),
}
IN_YAML = {"schedule": ("prediction", "timesteps", "beta_start", "beta_end"), "vae": ("scale",)}
V_PRED, ZTSNR = "v_pred", "ztsnr"
MOST = 100_000  # timesteps


def with_file_config(config: ModelConfig, source: Source, prediction: str | None) -> ModelConfig:
    """`config` with what the file and the .yaml beside it say of objective and schedule; `prediction` wins over both.

    Raise ValueError, naming file and field, for what no model of ours can have.
    """
    path = beside(source.path)
    said = read_lines(path) if path.is_file() else {}
    expected = AS_HERE | {"num_heads": str(config.unet.heads)}
    strange = next((field for field in expected if said.get(field, expected[field]) != expected[field]), None)
    if strange is not None:
        raise ValueError(f"{path}: {strange} is {shown(said[strange])}. Supported is {expected[strange]} alone.")
    schedule = config.schedule
    marked = "v" if V_PRED in source.entries else schedule.prediction
    try:
        schedule = replace(
            schedule,
            prediction=prediction or said.get("parameterization", marked),
            zero_terminal_snr=schedule.zero_terminal_snr
            or ZTSNR in source.entries
            or said.get("rescale_betas_zero_snr", "false").lower() == "true",
            timesteps=int(positive(said, "timesteps", schedule.timesteps)),
            beta_start=positive(said, "linear_start", schedule.beta_start),
            beta_end=positive(said, "linear_end", schedule.beta_end),
        )
        scale = positive(said, "scale_factor", config.vae.scale)
    except ValueError as error:
        raise ValueError(f"{path if said else source.path}: {error}") from error
    return replace(config, schedule=fit_schedule(schedule, source), vae=replace(config.vae, scale=scale))


def beside(path: Path) -> Path:
    """The .yaml that goes with a file of weights."""
    return path.with_suffix(".yaml")


def read_lines(path: Path) -> dict[str, str]:
    """The lines `name: value` of a .yaml whose names are known here. Raise ValueError for one with two values."""
    if path.stat().st_size > DESCRIPTION_LIMIT:
        raise ValueError(f"{path}: too large for a description of a model. Move it away from the weights.")
    said: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = LINE.match(line)
        if found is None or found[1] not in (*READ, *AS_HERE):
            continue
        value = next(group for group in found.groups()[1:] if group is not None)
        if said.setdefault(found[1], value) != value:
            raise ValueError(f"{path}: {found[1]} is {shown(said[found[1]])} and {shown(value)}. Leave one of them.")
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
    for candidate in (config, *others(config, values)) if values else ():
        ours = buffers(make_schedule(candidate))
        if all(close(ours[name], value) for name, value in values.items()):
            if candidate != config:
                note(f"{source.path}: its own noise schedule is taken: {described(candidate)}.")
            return candidate
    if values:
        raise ValueError(
            f"{source.path}: its noise schedule ({', '.join(values)}) is not that of {described(config)}, and none of "
            "scaled linear betas. Only such can be imported; a model that ends in pure noise needs --prediction v."
        )
    return config


def others(config: ScheduleConfig, values: dict[str, Tensor]) -> Iterator[ScheduleConfig]:
    """Schedules that the buffers may be of: one that ends in noise, and one with other ends of its betas."""
    if config.prediction == "v":
        yield replace(config, zero_terminal_snr=True)
    if "betas" in values or "alphas_cumprod" in values:
        alpha_bar = values.get("alphas_cumprod", torch.ones(2)).double()
        beta = values.get("betas", 1 - alpha_bar[1:] / alpha_bar[:-1]).double()
        first = float(beta[0] if "betas" in values else 1 - alpha_bar[0])
        ends = {"beta_start": float(f"{first:.4g}"), "beta_end": float(f"{float(beta[-1]):.4g}")}
        if all(0 < end < 1 for end in ends.values()):
            count = len(next(iter(values.values())))
            yield replace(config, timesteps=count, zero_terminal_snr=False, **ends)  # type: ignore[arg-type]


def buffers(schedule: Schedule) -> dict[str, Tensor]:
    """The schedule as a CompVis file holds it, under its names; what follows from these is not looked at."""
    return {
        "betas": schedule.beta,
        "alphas_cumprod": schedule.alpha_bar,
        "alphas_cumprod_prev": torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]]),
        "sqrt_alphas_cumprod": schedule.alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - schedule.alpha_bar).sqrt(),
    }


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two schedules are equal but for rounding: of the type, and of a product of 1000 factors in float32."""
    rounding = max(5e-4, 4 * torch.finfo(theirs.dtype).eps) if theirs.is_floating_point() else 0.0
    return ours.shape == theirs.shape and torch.allclose(ours, theirs.double(), rtol=rounding, atol=1e-7)


def described(config: ScheduleConfig) -> str:
    """A schedule in words."""
    end = ", ending in pure noise" * config.zero_terminal_snr
    return f"{config.timesteps} scaled linear betas from {config.beta_start:g} to {config.beta_end:g}{end}"


def yaml_beside(out: Path, config: ModelConfig) -> dict[Path, str]:
    """The .yaml beside a CompVis file of this model and its text: where one is needed, or there and to be replaced."""
    needed = any(
        getattr(getattr(config, table), field) != getattr(getattr(SD15, table), field)
        for table, names in IN_YAML.items()
        for field in names
    )
    if not needed and not beside(out).exists():
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


def unlike_sd15(config: ModelConfig, taken: set[str]) -> Iterator[str]:
    """The values of the parts taken that are not SD 1.5's: what a reader of a layout without a config takes for it."""
    tables = {"schedule", "unet", "control"} if "controlnet" in taken else {"schedule", *taken}
    for table in sorted(tables):
        passed = OF_SAMPLING.get(table, ()) + (IN_YAML.get(table, ()) if "unet" in taken else ())
        for field in fields(getattr(config, table)):
            value, usual = (getattr(getattr(one, table), field.name) for one in (config, SD15))
            if value != usual and field.name not in passed:
                shown = f"{value:.5g}" if isinstance(value, float) else value
                yield f"{table}.{field.name} {shown}"
