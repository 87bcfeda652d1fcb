"""What the .json files of a diffusers folder say of its weights: read where a config of ours has a place for it.

Every other field is one of three kinds. folder_settings.json lists those that change no number, other words for a value
that is supported, and the value that a field has where it is left out: the default of the constructors of diffusers and
transformers, of a scheduler that of its class. What is in neither list, nor in a folder that an export writes, is not
known here, and a note says so. All else must be as in that folder.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_us.config import SPACINGS, ModelConfig, ScheduleConfig, check_limits
from ldm_us.files.checkpoint import NETWORKS
from ldm_us.files.stored_tensor import shown
from ldm_us.runtime.entry import note
from weights_convert.convert import target_shapes
from weights_convert.diffusers_folder import FIXED, PREDICTIONS, Fields, fields_by_file, tokenizer_settings
from weights_convert.sources import read_json

SCHEDULER, VAE, TEXT = "scheduler/scheduler_config.json", "vae/config.json", "text_encoder/config.json"
UNET, CONTROLNET, TOKENIZER = "unet/config.json", "controlnet/config.json", "tokenizer/tokenizer_config.json"
PIPELINE = "pipeline"  # beside the parts of a model: what belongs to none of them
FILES = {
    PIPELINE: (SCHEDULER, "model_index.json"),
    "vae": (VAE,),
    "text": (TEXT, TOKENIZER),
    "unet": (UNET,),
    "controlnet": (CONTROLNET,),
}
CLASSES = {"AutoencoderKL": VAE, "UNet2DConditionModel": UNET, "ControlNetModel": CONTROLNET}  # of a component alone
KNOWN: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="ascii"))
READ = (  # whole numbers that the tensors do not show, or not alone: file, field, and where a config has it
    (UNET, "attention_head_dim", "unet", "heads"),  # diffusers' name for the NUMBER of heads
    (UNET, "norm_num_groups", "unet", "groups"),
    (VAE, "norm_num_groups", "vae", "groups"),
    (TEXT, "num_attention_heads", "text", "heads"),
    (TEXT, "num_hidden_layers", "text", "layers"),
)


def with_folder_config(
    config: ModelConfig, folder: Path, parts: Collection[str] = (PIPELINE, *NETWORKS)
) -> ModelConfig:
    """`config` with what a folder says of its schedule and of these parts, where it has the files.

    Raise ValueError, naming file and field, for a value that no model of ours can have, and for a file that is damaged.
    """
    tables = {name: folder / name for part in parts for name in FILES[part] if (folder / name).is_file()}
    alone = folder / "config.json"
    if alone.is_file():
        values = read_json(alone)
        name = CLASSES.get(str(values.get("_class_name")), TEXT if "model_type" in values else "")
        tables |= dict.fromkeys({name} & {file for part in parts for file in FILES[part]}, alone)
    said = {name: with_defaults(name, fields_of(path)) for name, path in tables.items()}
    if SCHEDULER in said:
        config = replace(config, schedule=schedule_of(config.schedule, said[SCHEDULER], tables[SCHEDULER]))
    if VAE in said:
        scale = number(said[VAE], "scaling_factor", tables[VAE])
        config = replace(config, vae=replace(config.vae, scale=scale))
    for name, field, table, ours in READ:
        value = one_of_equals(said.get(name, {}).get(field))
        if type(value) is int and value > 0:
            config = replace(config, **{table: replace(getattr(config, table), **{ours: value})})
    try:
        check_limits(config)
        unet, text = config.unet, config.text
        if text.width % text.heads or any(unet.width * multiplier % unet.heads for multiplier in unet.multipliers):
            raise ValueError(f"{text.heads} or {unet.heads} heads do not divide the widths")
        target_shapes(config)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{folder}: no model has the sizes that its config.json files give ({error}).") from error
    ours_by_file = fields_by_file(config) | {TOKENIZER: tokenizer_settings(config.text.length)}
    for name, path in tables.items():
        ours = KNOWN[name]["defaults"] | FIXED.get(name, {}) | ours_by_file[name]
        compare_fields(path, said[name], ours, KNOWN[name], config.name)
    return config


def with_defaults(name: str, fields: Fields) -> Fields:
    """The fields of one file, and the values of those that it leaves out."""
    of_class = KNOWN[name].get("by_class", {}).get(str(fields.get("_class_name")), {})
    values: Fields = KNOWN[name]["defaults"] | of_class | fields
    if name == CONTROLNET and values["num_attention_heads"] is not None:  # a ControlNet's other name for their number
        values["attention_head_dim"] = values.pop("num_attention_heads")
    return values


def compare_fields(path: Path, theirs: Fields, ours: Fields, known: dict[str, Any], model: str) -> None:
    """Raise ValueError for the first field with another value than ours; a note names those that are not known."""
    unknown = []
    for field in sorted(theirs.keys() - set(known["without_effect"])):
        value = theirs[field]
        if value in ([None, None], *known.get("equal", {}).get(field, ())):  # no such component, or as here
            continue
        if field in ours and not same(ours[field], value):
            raise ValueError(
                f"{path}: {field} is {shown(repr(value))}, but in {model} it is {shown(repr(ours[field]))}: with other "
                "values the weights would sample something else. Choose a --preset of these sizes, or another model."
            )
        if field not in ours and value not in (None, False, "", [], {}):
            unknown.append(f"{shown(field)} {shown(repr(value), 50)}")
    if unknown:
        note(f"{path}: not known here: {', '.join(unknown)}. Where that changes what the weights give, samples differ.")


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal; a list of equal ones stands for each of them, a token may be a table."""
    if isinstance(theirs, dict) and "content" in theirs:
        theirs = theirs["content"]
    if isinstance(ours, list) != isinstance(theirs, list):
        ours, theirs = one_of_equals(ours), one_of_equals(theirs)
    return isinstance(ours, bool) == isinstance(theirs, bool) and bool(ours == theirs)


def one_of_equals(value: Any) -> Any:
    """8 for [8, 8, 8, 8]; any other value as it is."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def fields_of(path: Path) -> Fields:
    """The table of a .json file; of a whole CLIP, that of its text tower."""
    values = read_json(path)
    inside = values.get("text_config")
    return inside if isinstance(inside, dict) else values


def schedule_of(config: ScheduleConfig, scheduler: Fields, path: Path) -> ScheduleConfig:
    """`config` with what a scheduler's file says of training, of the last step and of the grid."""
    ours = {theirs: name for name, theirs in PREDICTIONS.items()}
    prediction = str(scheduler["prediction_type"])
    if prediction not in ours:
        raise ValueError(f"{path}: prediction_type {prediction!r}. Supported are {', '.join(ours)}.")
    ends_in_noise = scheduler["rescale_betas_zero_snr"] or False
    if not isinstance(ends_in_noise, bool) or (ends_in_noise and prediction != PREDICTIONS["v"]):
        raise ValueError(
            f"{path}: rescale_betas_zero_snr {ends_in_noise!r} with prediction_type {prediction}. Only a model that "
            "predicts v can start from pure noise."
        )
    spacing = scheduler.get("timestep_spacing", "leading")
    if spacing not in SPACINGS:  # of Euler's and Karras' grids
        note(f"{path}: timestep_spacing {spacing!r}. sample.py takes a leading grid instead.")
        spacing = "leading"
    if ends_in_noise and spacing == "leading":
        note(f"{path}: the schedule ends in pure noise, where its leading grid of timesteps does not start.")
    final = scheduler.get("set_alpha_to_one", config.final_alpha_bar_one)
    return replace(
        config,
        prediction=ours[prediction],
        zero_terminal_snr=ends_in_noise,
        spacing=spacing,
        final_alpha_bar_one=final if isinstance(final, bool) else config.final_alpha_bar_one,
        timesteps=int(number(scheduler, "num_train_timesteps", path, whole=True)),
        beta_start=number(scheduler, "beta_start", path),
        beta_end=number(scheduler, "beta_end", path),
    )


def number(values: Fields, name: str, path: Path, whole: bool = False) -> float:
    """A positive number of a table."""
    value = values[name]
    in_range = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    if not in_range or (whole and value != int(value)):
        kind = "whole" if in_range else "positive"
        raise ValueError(f"{path}: {name} is {value!r}, not a {kind} number. Download or copy it again.")
    return float(value)
