"""weights_convert/source_config.py: an import believes what a diffusers folder says of its schedule and its latents."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from ldm_us.config import BUNDLED, SD15, US128, US128_V
from ldm_us.files.checkpoint import load_model
from ldm_us.runtime.entry import run_command
from weights_convert.__main__ import main
from weights_convert.export_command import without_ours
from weights_convert.folder_settings import with_folder_config

BASE = BUNDLED.with_name("us128_base.safetensors")


def call(*words: object) -> int:
    return run_command(lambda: main([str(word) for word in words]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "folder"
    assert call("export", BASE, "--format", "diffusers", "--out", folder) == 0
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A folder of our export, as somebody else's tool may have written it: without our metadata."""
    shutil.copytree(exported, tmp_path / "folder")
    for file in (tmp_path / "folder").rglob("*.safetensors"):
        save_file(load_file(file), file)
    return tmp_path / "folder"


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_exported_folder_brings_its_own_config_back(exported, tmp_path):
    assert call("import", exported, "--out", tmp_path / "out.safetensors") == 0
    assert load_model(tmp_path / "out.safetensors").config == without_ours(load_model(BASE).config)


def test_without_metadata_the_folder_itself_tells_scale_and_prediction(folder, tmp_path):
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction", beta_end=0.02)
    assert call("import", folder, "--preset", "us128", "--out", tmp_path / "out.safetensors") == 0
    config = load_model(tmp_path / "out.safetensors").config
    assert config.schedule.prediction == "v"
    assert config.schedule.beta_end == 0.02
    assert config.vae.scale == load_model(BASE).config.vae.scale != SD15.vae.scale


def test_a_schedule_that_ends_in_noise_and_a_trailing_grid_are_read_and_written(folder, tmp_path, capsys):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    own = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    change(scheduler, **own)
    assert call("import", folder, "--preset", "us128", "--out", tmp_path / "out.safetensors") == 0
    schedule = load_model(tmp_path / "out.safetensors").config.schedule
    assert (schedule.prediction, schedule.zero_terminal_snr, schedule.spacing) == ("v", True, "trailing")
    assert call("export", tmp_path / "out.safetensors", "--format", "diffusers", "--out", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "scheduler" / "scheduler_config.json").read_text())
    assert {name: again[name] for name in own} == own
    change(scheduler, timestep_spacing="linspace")
    assert with_folder_config(US128, folder).schedule.spacing == "leading"
    assert "timestep_spacing 'linspace'. sample.py takes a leading grid instead" in capsys.readouterr().err
    assert with_folder_config(US128_V, folder / "none") == US128_V


def test_a_changed_file_counts_more_than_the_metadata_of_the_export(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "changed")
    change(tmp_path / "changed" / "vae" / "config.json", scaling_factor=0.5)
    assert call("import", tmp_path / "changed", "--out", tmp_path / "out.safetensors") == 0
    assert load_model(tmp_path / "out.safetensors").config.vae.scale == 0.5


def test_an_exchanged_part_is_told(exported, tmp_path, capsys):
    shutil.copytree(exported, tmp_path / "mixed")
    file = tmp_path / "mixed" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file)
    assert call("import", tmp_path / "mixed", "--preset", "us128", "--out", tmp_path / "out.safetensors") == 0
    assert "files were exchanged since it was exported" in capsys.readouterr().err


def test_a_folder_without_these_files_leaves_the_preset_as_it_is(tmp_path):
    assert with_folder_config(SD15, tmp_path) == SD15


@pytest.mark.parametrize(
    ("file", "fields", "sentence"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type 'sample'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule is 'linear', but in us128"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "Only a model that predicts v can start"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr 'yes'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5"),
        ("scheduler/scheduler_config.json", {"beta_end": 1.5}, "betas from 0.00085 to 1.5 are no noise schedule"),
        ("vae/config.json", {"scaling_factor": "big"}, "scaling_factor is 'big', not a positive number"),
        ("vae/config.json", None, "not JSON"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder, tmp_path, capsys, file, fields, sentence):
    if fields is None:
        (folder / file).write_text("{")
    else:
        change(folder / file, **fields)
    assert call("import", folder, "--preset", "us128", "--out", tmp_path / "out.safetensors") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
