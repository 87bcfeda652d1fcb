"""What the .json files of a diffusers folder say of schedule and autoencoder, which its weights do not show.

A model that predicts v samples noise if it is taken for one that predicts eps, and nothing else would tell.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_us.config import ModelConfig
from weights_convert.diffusers_folder import PREDICTIONS

SCHEDULER, VAE = Path("scheduler/scheduler_config.json"), Path("vae/config.json")


def with_folder_config(config: ModelConfig, folder: Path) -> ModelConfig:
    """`config` with the schedule and the latents' scale of the folder, where it has these files.

    Raise ValueError for a schedule that a model of ours cannot have, and for a file that is damaged.
    """
    scheduler, vae = read_json(folder / SCHEDULER), read_json(folder / VAE)
    ours = {theirs: name for name, theirs in PREDICTIONS.items()}
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ours:
        raise ValueError(f"{folder / SCHEDULER}: prediction_type {prediction!r}. Supported are {', '.join(ours)}.")
    kind = scheduler.get("beta_schedule", "scaled_linear")
    if kind != "scaled_linear" or scheduler.get("trained_betas") is not None:
        raise ValueError(
            f"{folder / SCHEDULER}: its betas are {kind} or given one by one. Supported are scaled_linear ones, as in "
            "Stable Diffusion 1.x."
        )
    schedule = replace(
        config.schedule,
        prediction=ours[prediction] if scheduler else config.schedule.prediction,
        timesteps=whole(scheduler, "num_train_timesteps", config.schedule.timesteps, folder / SCHEDULER),
        beta_start=number(scheduler, "beta_start", config.schedule.beta_start, folder / SCHEDULER),
        beta_end=number(scheduler, "beta_end", config.schedule.beta_end, folder / SCHEDULER),
    )
    scale = number(vae, "scaling_factor", config.vae.scale, folder / VAE)
    return replace(config, schedule=schedule, vae=replace(config.vae, scale=scale))


def read_json(path: Path) -> dict[str, Any]:
    """A table; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Download or copy it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}, not a table. Download or copy it again.")
    return values


def number(values: dict[str, Any], name: str, otherwise: float, path: Path) -> float:
    """A positive number of a table."""
    value = values.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"{path}: {name} is {value!r}, not a positive number. Download or copy it again.")
    return float(value)


def whole(values: dict[str, Any], name: str, otherwise: int, path: Path) -> int:
    """A whole number of a table."""
    value = number(values, name, otherwise, path)
    if value != int(value):
        raise ValueError(f"{path}: {name} is {value!r}, not a whole number. Download or copy it again.")
    return int(value)
