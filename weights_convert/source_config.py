"""Which config the tensors of a source need: that in the metadata of a model file of ours, or else a preset.

A diffusers folder says more in its .json files. A model that predicts v samples noise if it is taken for one that
predicts eps, and nothing else would tell.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_us.config import PRESETS, SPACINGS, ModelConfig, config_from_dict
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.safetensors_header import parse_json
from ldm_us.files.stored_tensor import shown
from weights_convert.convert import target_shapes
from weights_convert.diffusers_folder import PREDICTIONS
from weights_convert.sources import Source

SCHEDULER, VAE = Path("scheduler/scheduler_config.json"), Path("vae/config.json")


def with_metadata_of_export(src: Source) -> Source:
    """A diffusers folder that an export wrote, with the metadata that each of its files has; else the source as it is.

    Where the files do not agree, or some have none, somebody has exchanged or trained parts since.
    """
    if not src.path.is_dir() or any(file.suffix != ".safetensors" for file in src.files):
        return src
    first, *others = metadata = [read_metadata(file) for file in src.files]
    if "config" in first and all(other == first for other in others):
        return replace(src, metadata=first)
    if any("config" in each for each in metadata):
        print("note: files of this folder were exchanged since it was exported: sizes are those of --preset.")
    return src


def choose_config(src: Source, preset: str | None) -> ModelConfig:
    """The config that a model file of ours carries, else the preset; of a folder, what its .json files say on top."""
    if "config" not in src.metadata:
        config = PRESETS[preset or "sd15"]
    else:
        try:
            config = config_from_dict(parse_json(src.metadata["config"]))
            target_shapes(config)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # the last three: of a width of -1
            raise ValueError(f"{src.path}: the config in its metadata cannot be read ({shown(str(error))}).") from error
        if preset not in (None, config.name):
            raise ValueError(f"{src.path}: carries its own config, {config.name}. Leave --preset {preset} out.")
    return with_folder_config(config, src.path) if src.path.is_dir() else config


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
    ends_in_noise = (
        scheduler.get("rescale_betas_zero_snr", config.schedule.zero_terminal_snr and not scheduler) or False
    )
    if not isinstance(ends_in_noise, bool) or (ends_in_noise and prediction != PREDICTIONS["v"] and scheduler):
        raise ValueError(
            f"{folder / SCHEDULER}: rescale_betas_zero_snr {ends_in_noise!r} with prediction_type {prediction}. Only a "
            "model that predicts v can start from pure noise."
        )
    spacing = scheduler.get("timestep_spacing", "leading" if scheduler else config.schedule.spacing)
    if spacing not in SPACINGS:  # of Euler's and Karras' grids
        print(f"note: {folder / SCHEDULER}: timestep_spacing {spacing!r}. sample.py takes a leading grid instead.")
        spacing = "leading"
    schedule = replace(
        config.schedule,
        zero_terminal_snr=ends_in_noise,
        spacing=spacing,
        prediction=ours[prediction] if scheduler else config.schedule.prediction,
        timesteps=int(
            number(scheduler, "num_train_timesteps", config.schedule.timesteps, folder / SCHEDULER, whole=True)
        ),
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


def number(values: dict[str, Any], name: str, otherwise: float, path: Path, whole: bool = False) -> float:
    """A positive number of a table."""
    value = values.get(name, otherwise)
    in_range = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    if not in_range or (whole and value != int(value)):
        kind = "whole" if in_range else "positive"
        raise ValueError(f"{path}: {name} is {value!r}, not a {kind} number. Download or copy it again.")
    return float(value)
