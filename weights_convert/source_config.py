"""Which config the tensors of a source need: that in the metadata of a model file of ours, or else a preset.

A diffusers folder says more in its .json files (folder_settings.py), a file in what lies beside it (file_settings.py),
and so do the files of parts that replace those of the source.
A model that predicts v samples noise if it is taken for one that predicts eps, and nothing else would tell.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from ldm_us.config import PRESETS, ModelConfig, config_from_dict
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.json_values import parse_json
from ldm_us.files.stored_tensor import shown
from ldm_us.runtime.entry import note
from weights_convert.convert import target_shapes
from weights_convert.detect import detect
from weights_convert.file_settings import with_file_config
from weights_convert.folder_settings import FILES, with_folder_config
from weights_convert.sources import Source, open_source

# A part -> the tables of a config that its weights depend on, and the fields that it brings along. Of the rest, SRC's
# are kept where they say how a VAE was measured or trained; all else must be equal.
OF_PART = {
    "vae": (("vae",), ("scale", "groups")),
    "text": (("text",), ("heads",)),
    "controlnet": (("control", "unet"), ("scale", "guidance")),
}
KEPT = ("whitened", "grain", "grain_bands")


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
        note(f"{src.path}: files were exchanged since it was exported: sizes are those of --preset.")
    return src


def choose_config(
    src: Source,
    preset: str | None,
    prediction: str | None = None,
    replaced: Mapping[str, Path] | None = None,
    otherwise: ModelConfig | None = None,
) -> ModelConfig:
    """The config that a model file of ours carries, or `otherwise`, or the preset; what weights come with counts more.

    That is the .json files of a folder, and what lies beside a file or in it, also of one that replaces a part (part ->
    its path). `prediction` counts more than all of them.
    """
    config = carried_config(src)
    if config is None:
        config = otherwise or PRESETS[preset or "sd15"]
    elif preset not in (None, config.name):
        raise ValueError(f"{src.path}: carries its own config, {config.name}. Leave --preset {preset} out.")
    replaced = replaced or {}
    parts = FILES.keys() - replaced.keys()
    if src.path.is_dir():
        detect(src)  # another family of models is named as such, not by its first strange setting
        config = with_folder_config(config, src.path, parts)
    elif "config" not in src.metadata:
        config = with_file_config(config, src, prediction, parts)
    if prediction is not None:
        config = replace(config, schedule=replace(config.schedule, prediction=prediction))
    scale = config.vae.scale
    for part, path in replaced.items():
        config = with_part(config, part, path)
    if config.vae.scale != scale:
        note(
            f"--vae: its latents are scaled by {config.vae.scale:g}, those of SRC by {scale:g}. If it is not the "
            "autoencoder that SRC's UNet was trained with, samples are wrong."
        )
    start, end = config.schedule.beta_start, config.schedule.beta_end
    if not 0 < start <= end < 1:
        raise ValueError(f"{src.path}: betas from {start:g} to {end:g} are no noise schedule: let them rise below 1.")
    return config


def carried_config(src: Source) -> ModelConfig | None:
    """The config in the metadata of a model file of ours."""
    if "config" not in src.metadata:
        return None
    try:
        config = config_from_dict(parse_json(src.metadata["config"]))
        target_shapes(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # the last three: of a width of -1
        raise ValueError(f"{src.path}: the config in its metadata cannot be read ({shown(str(error))}).") from error
    return config


def with_part(config: ModelConfig, part: str, path: Path) -> ModelConfig:
    """`config` with what goes with one part of another file. Raise ValueError for what no weights of SRC go with."""
    source = with_metadata_of_export(open_source(path))
    theirs = carried_config(source)
    if theirs is not None:
        tables, brought = OF_PART[part]
        values = {name: getattr(getattr(theirs, tables[0]), name) for name in brought}
        config = replace(config, **{tables[0]: replace(getattr(config, tables[0]), **values)})
        for table in tables:
            own, other = getattr(config, table), getattr(theirs, table)
            for name in (field.name for field in fields(own) if field.name not in KEPT):
                a, b = getattr(own, name), getattr(other, name)
                if a != b:
                    raise ValueError(
                        f"{path}: {table}.{name} is {b}, but in {config.name} it is {a}. Give another file."
                    )
    if path.is_dir():
        return with_folder_config(config, path, (part,))
    return config if theirs is not None else with_file_config(config, source, parts=(part,))
