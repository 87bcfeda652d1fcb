"""Which config the tensors of a source need: that in the metadata of a model file of ours, or else a preset.

A diffusers folder says more in its .json files (folder_settings.py), a file in what lies beside it (file_settings.py).
A model that predicts v samples noise if it is taken for one that predicts eps, and nothing else would tell.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ldm_us.config import PRESETS, ModelConfig, config_from_dict
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.safetensors_header import parse_json
from ldm_us.files.stored_tensor import shown
from weights_convert.convert import target_shapes
from weights_convert.detect import detect
from weights_convert.file_settings import with_file_config
from weights_convert.folder_settings import FILES, with_folder_config
from weights_convert.sources import Source
from weights_convert.summary import note


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
    src: Source, preset: str | None, prediction: str | None = None, replaced: Mapping[str, Path] | None = None
) -> ModelConfig:
    """The config that a model file of ours carries, else the preset; what goes with the weights counts more.

    That is the .json files of a folder, also of one that replaces a part (part -> its path), and what lies beside a
    file or in it. `prediction` counts more than all of them.
    """
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
    replaced = replaced or {}
    if src.path.is_dir():
        detect(src)  # another family of models is named as such, not by its first strange setting
        config = with_folder_config(config, src.path, FILES.keys() - replaced.keys())
    elif "config" not in src.metadata:
        config = with_file_config(config, src, prediction)
    if prediction is not None:
        config = replace(config, schedule=replace(config.schedule, prediction=prediction))
    for part, path in replaced.items():
        config = with_folder_config(config, path, (part,)) if path.is_dir() else config
    start, end = config.schedule.beta_start, config.schedule.beta_end
    if not 0 < start <= end < 1:
        raise ValueError(f"{src.path}: betas from {start:g} to {end:g} are no noise schedule: let them rise below 1.")
    return config
