"""Configs: a round trip through JSON, older files read, newer ones refused, and presets that fit together."""

import copy
import dataclasses
import json

import pytest

from ldm_us.config import PRESETS, SD15, US128, ModelConfig, VAEConfig, config_from_dict, config_to_dict

PARTS = [None, "schedule", "vae", "text", "unet", "control"]


@pytest.fixture
def values():
    return copy.deepcopy(config_to_dict(SD15))


def part_of(values, part):
    return values if part is None else values[part]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    config = PRESETS[name]
    again = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    assert again == config
    assert hash(again) == hash(config), "lists became tuples again"
    assert config.name == name


@pytest.mark.parametrize("part", PARTS)
def test_an_unknown_field_is_refused_and_named(values, part):
    part_of(values, part)["colour"] = 3
    where = "config" if part is None else rf"config\.{part}"
    with pytest.raises(ValueError, match=rf"^{where}: unknown fields \['colour'\]"):
        config_from_dict(values)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_field_takes_its_default_as_in_files_older_than_the_field(part):
    kept = copy.deepcopy(config_to_dict(US128))
    for field in list(part_of(kept, part)):
        values = copy.deepcopy(kept)
        del part_of(values, part)[field]
        expected = copy.deepcopy(kept)
        part_of(expected, part)[field] = part_of(config_to_dict(ModelConfig()), part)[field]
        assert config_from_dict(values) == config_from_dict(expected)


def test_a_config_written_before_there_were_prompt_tokens_means_none(values):
    del values["text"]["prompt_tokens"]
    assert config_from_dict(values) == SD15
    assert SD15.text.prompt_tokens == 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("wrong", [None, 5, "text", [], [1]])
def test_anything_but_a_table_of_fields_is_refused_and_named(values, part, wrong):
    where, changed = ("config", wrong) if part is None else (rf"config\.{part}", values | {part: wrong})
    with pytest.raises(ValueError, match=rf"^{where}: .* instead of a table of fields"):
        config_from_dict(changed)


def test_a_change_in_any_field_survives_the_round_trip(values):
    values["vae"]["scale"] = 0.7
    values["schedule"]["final_alpha_bar_one"] = True
    values["unet"]["attention"] = [False, True, True, False]
    config = config_from_dict(values)
    assert config.vae == dataclasses.replace(VAEConfig(), scale=0.7)
    assert config.schedule.final_alpha_bar_one is True
    assert config.unet.attention == (False, True, True, False)
    assert config.text == SD15.text


def test_configs_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SD15.vae.scale = 1.0


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_the_parts_of_a_preset_fit_together(config):
    f = config.vae.downsampling
    assert config.unet.context_width == config.text.width
    assert config.unet.latent_channels == config.vae.latent_channels
    assert len(config.unet.attention) == len(config.unet.multipliers)
    assert 2 ** (len(config.control.hint_channels) - 1) == f
    assert config.size_multiple == f * 2 ** (len(config.unet.multipliers) - 1)
    assert config.image_size % config.size_multiple == 0
    for part in (config.unet, config.vae):
        assert all(part.width * m % part.groups == 0 for m in part.multipliers)
    assert all(config.unet.width * m % config.unet.heads == 0 for m in config.unet.multipliers)


@pytest.mark.parametrize(("multipliers", "pixels"), [((1,), 1), ((1, 2, 2), 4), ((1, 2, 4, 4), 8)])
def test_downsampling_halves_once_a_level_but_the_last(multipliers, pixels):
    assert VAEConfig(multipliers=multipliers).downsampling == pixels


def test_a_prediction_that_no_sampler_knows_is_refused(values):
    values["schedule"]["prediction"] = "x_0"
    with pytest.raises(ValueError, match=r"^prediction 'x_0': use one of eps, v\.$"):
        config_from_dict(values)
