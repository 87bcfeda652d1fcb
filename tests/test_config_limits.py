"""Configs that a file brings along: every preset passes, and what would take for ever to build is refused at once."""

import dataclasses
import json
import math
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_us.config import PRESETS, ModelConfig, check_limits, config_from_dict, config_to_dict
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, read_metadata, save_model
from ldm_us.files.lora_file import apply_lora, save_lora
from ldm_us.networks.lora import LoRAConfig, add_lora


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes(name):
    check_limits(PRESETS[name])
    assert config_from_dict(json.loads(json.dumps(config_to_dict(PRESETS[name])))) == PRESETS[name]


LIES = [
    ("text", "layers", 10**9),
    ("text", "vocabulary", 10**12),
    ("text", "width", 2**63),
    ("text", "prompt_tokens", 10**9),
    ("vae", "res_blocks", 10**9),
    ("vae", "width", -1),
    ("vae", "width", 32.0),
    ("vae", "width", True),
    ("vae", "scale", math.nan),
    ("vae", "scale", 10**400),
    ("vae", "scale", "1"),
    ("unet", "multipliers", [1] * 1000),
    ("unet", "multipliers", []),
    ("unet", "multipliers", [1, 10**9]),
    ("unet", "multipliers", [1, [1]]),
    ("unet", "attention", [1, 1]),
    ("unet", "heads", None),
    ("schedule", "timesteps", 10**9),
    ("schedule", "beta_end", math.inf),
    ("schedule", "prediction", "x" * 101),
    ("control", "hint_channels", [10**9] * 4),
    ("control", "guidance", "strong"),
    (None, "name", "a\nb"),
    (None, "name", "a" * 101),
    (None, "image_size", 10**9),
    (None, "unet", None),
]


@pytest.mark.parametrize(("part", "field", "value"), LIES)
def test_a_value_that_no_model_has_is_refused_by_the_name_of_its_field(part, field, value):
    values = config_to_dict(ModelConfig())
    (values if part is None else values[part])[field] = value
    began = time.process_time()
    with pytest.raises(ValueError, match=field) as error:
        config_from_dict(values)
    assert time.process_time() - began < 1
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_the_largest_config_that_passes_is_built_or_refused_in_seconds(micro, tmp_path):
    """On the meta device, where widths cost nothing: what counts is the number of layers."""
    largest = config_to_dict(micro)
    largest["text"] |= {"layers": 100, "width": 100_000, "heads": 1, "mlp_width": 100_000, "vocabulary": 1_000_000}
    largest["vae"] |= {"multipliers": [1] * 8, "res_blocks": 10, "width": 96_000}
    largest["unet"] |= {"multipliers": [1] * 8, "attention": [True] * 8, "res_blocks": 10, "width": 96_000}
    save_model(LatentDiffusion(micro), tmp_path / "x.safetensors", {"config": json.dumps(largest)})
    began = time.process_time()
    with pytest.raises(ValueError, match="does not fit the config it carries"):
        load_model(tmp_path / "x.safetensors")
    assert time.process_time() - began < 20


@pytest.mark.parametrize("config", ["[" * 100_000, '{"name": "a", "name": "b"}', "9" * 10_000, '{"x": 1e999}'])
def test_json_made_to_break_a_parser_is_refused_in_a_model_and_an_import(config, micro, convert, tmp_path):
    path = tmp_path / "x.safetensors"
    save_model(LatentDiffusion(micro), path, {"config": config})
    with pytest.raises(ValueError, match=r"x\.safetensors: its config cannot be read") as error:
        load_model(path)
    assert str(error.value).isprintable()
    code, _, said = convert(path, "--out", tmp_path / "out.safetensors")
    assert (code, said.count("\n")) == (2, 1)
    assert "the config in its metadata cannot be read" in said


@pytest.fixture
def lora(micro, tmp_path):
    """A function of changed settings: a LoRA's file with them, and its model."""
    model = LatentDiffusion(micro)

    def write(**settings):
        adapted, config = LatentDiffusion(micro), LoRAConfig(rank=1, alpha=1.0)
        add_lora(adapted, config, torch.Generator())
        path = tmp_path / "lora.safetensors"
        save_lora(path, adapted, config, "random")
        lora = json.dumps(dataclasses.asdict(config) | settings)
        save_file(load_file(path), path, read_metadata(path) | {"lora": lora})
        return model, path

    return write


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 10**9},
        {"rank": 1.5},
        {"rank": "1"},
        {"alpha": 10**400},
        {"alpha": math.nan},
        {"parts": 5},
        {"parts": [["unet"]]},
        {"parts": ["unet\n"]},
        {"targets": ["q"] * 1000},
        {"full": ["text.prompt"] * 100_000},
        {"full": [10**9]},
    ],
    ids=str,
)
def test_settings_of_a_lora_that_lie_are_refused_in_one_line(settings, lora):
    model, path = lora(**settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"lora\.safetensors: ") as error:
        apply_lora(model, path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
