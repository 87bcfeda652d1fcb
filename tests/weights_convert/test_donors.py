"""weights_convert/source_config.py: a part from another file brings what goes with its weights, whatever the file."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from ldm_us.config import TINY, config_to_dict
from tests.golden.converted import source_from_state_dict
from weights_convert.diffusers_folder import folder_texts
from weights_convert.source_config import choose_config


def changed(**tables):
    return dataclasses.replace(
        TINY, **{name: dataclasses.replace(getattr(TINY, name), **own) for name, own in tables.items()}
    )


def take(part, path):
    return choose_config(source_from_state_dict({"x": torch.zeros(1)}), "tiny", replaced={part: path})


def donor(path, config=None, yaml=None):
    """A file with a config of ours in its metadata, or with a .yaml beside it."""
    save_file({"x": torch.zeros(1)}, path, None if config is None else {"config": json.dumps(config_to_dict(config))})
    if yaml is not None:
        path.with_suffix(".yaml").write_text(yaml)
    return path


@pytest.mark.parametrize(
    ("part", "tables"),
    [
        ("vae", {"vae": {"scale": 0.5, "groups": 16}}),
        ("text", {"text": {"heads": 8}}),
        ("controlnet", {"control": {"scale": 0.4, "guidance": 3.0}}),
    ],
)
def test_a_model_file_of_ours_brings_the_settings_of_its_part_and_no_others(part, tables, tmp_path):
    everything = changed(
        schedule={"prediction": "v"},
        vae={"scale": 0.5, "groups": 16, "whitened": True},
        text={"heads": 8},
        control={"scale": 0.4, "guidance": 3.0},
    )
    assert take(part, donor(tmp_path / "donor.safetensors", everything)) == changed(**tables)


@pytest.mark.parametrize(
    ("part", "tables", "sentence"),
    [
        ("vae", {"vae": {"noise_levels": 2}}, "vae.noise_levels is 2, but in tiny it is 0"),
        ("text", {"text": {"layers": 1}}, "text.layers is 1, but in tiny it is 2"),
        ("controlnet", {"unet": {"heads": 8}}, "unet.heads is 8, but in tiny it is 4"),
    ],
)
def test_a_part_that_differs_in_more_than_these_is_refused(part, tables, sentence, tmp_path):
    with pytest.raises(ValueError, match=rf"donor.safetensors: {sentence}"):
        take(part, donor(tmp_path / "donor.safetensors", changed(**tables)))


def test_the_yaml_beside_a_part_is_read_for_that_part(tmp_path):
    path = donor(tmp_path / "donor.pth.safetensors", yaml="scale_factor: 0.5\nglobal_average_pooling: True\n")
    assert take("vae", path) == changed(vae={"scale": 0.5})
    assert take("text", path) == TINY
    with pytest.raises(ValueError, match="global_average_pooling is true"):
        take("controlnet", path)


def test_an_autoencoder_of_another_scale_of_latents_gets_a_note(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads(folder_texts(TINY, False)["vae/config.json"]) | {"scaling_factor": 0.13025})
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert take("vae", tmp_path) == changed(vae={"scale": 0.13025})
    assert "note: --vae: its latents are scaled by 0.13025, those of SRC by 0.18215" in capsys.readouterr().err
    take("vae", donor(tmp_path / "same.safetensors", TINY))
    assert capsys.readouterr().err == ""
