"""weights_convert/file_settings.py: what a single file or the .yaml beside it says of objective and schedule counts."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_us.config import SD15, TINY, US128
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, save_model
from tests.conftest import MICRO
from tests.golden.converted import source_from_state_dict
from tests.golden.original import tiny_compvis
from weights_convert.file_settings import beside, buffers, with_file_config, yaml_beside

V = dataclasses.replace(SD15.schedule, prediction="v")
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def read(state=None, yaml=None, folder=None, prediction=None, config=SD15, metadata=None):
    source = dataclasses.replace(source_from_state_dict(state or {}), metadata=metadata or {})
    if folder is not None:
        source = dataclasses.replace(source, path=folder / "model.safetensors")
        beside(source.path).write_text(yaml)
    return with_file_config(config, source, prediction)


def test_a_yaml_beside_the_file_tells_prediction_schedule_and_scale(tmp_path):
    yaml = """
model:
  params:
    parameterization: "v"  # not eps
    linear_start: 0.001
    linear_end: 2.0e-2
    timesteps: 500
    scale_factor: 0.2
    unet_config:
      params: {x: 1}
"""
    config = read(yaml=yaml, folder=tmp_path)
    expected = dataclasses.replace(V, beta_start=0.001, beta_end=0.02, timesteps=500)
    assert (config.schedule, config.vae.scale) == (expected, 0.2)
    assert read(yaml="model: {}\n", folder=tmp_path) == SD15
    assert read(yaml='parameterization: "eps"\n', folder=tmp_path, prediction="v").schedule == V


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("parameterization: x0", "prediction 'x0': use one of eps, v"),
        ("parameterization: v\nparameterization: eps", "parameterization is v and eps"),
        ("linear_end: big", "linear_end is big, not a positive number"),
        ("model: {}\ntimesteps: 10.5", "timesteps is 10.5, not a positive number"),
        ("beta_schedule: cosine", "beta_schedule is cosine. Supported is linear alone"),
        ("model: {}\nnum_heads: 4", "num_heads is 4. Supported is 8 alone"),
        ("model: {}\nlayer: hidden", "layer is hidden. Supported is last alone"),
        ("global_average_pooling: True", "global_average_pooling is true. Supported is false alone"),
        ("num_head_channels: 64", "num_head_channels is 64. Supported is -1 alone"),
        ("use_scale_shift_norm: True", "use_scale_shift_norm is true. Supported is false alone"),
        ("parameterization:\n  v", "prediction '': use one of eps, v"),
        ("rescale_betas_zero_snr: True", "Use v"),
    ],
)
def test_what_a_yaml_must_not_say_is_refused_with_its_name(yaml, sentence, tmp_path):
    with pytest.raises(ValueError, match=f"model.yaml: .*{sentence}"):
        read(yaml=yaml, folder=tmp_path)


@pytest.mark.parametrize(
    "yaml",
    [
        'model: {params: {parameterization: "v", linear_start: 0.00085}}',
        '"parameterization": "v"',
        '{\'model\':{"parameterization":"v"}}',
        "parameterization: v\nlinear_end: 0.0120\nx:\n  linear_end: 1.2e-2  # the same",
    ],
)
def test_any_style_of_yaml_is_read(yaml, tmp_path):
    assert read(yaml=yaml, folder=tmp_path).schedule == V


@pytest.mark.parametrize("name", ["model.YAML", "model.yml"])
def test_any_name_of_a_yaml_is_read_and_two_of_them_are_refused(name, tmp_path):
    source = dataclasses.replace(source_from_state_dict({}), path=tmp_path / "model.CKPT")
    (tmp_path / name).write_text("parameterization: v")
    assert with_file_config(SD15, source).schedule == V
    (tmp_path / "model.yaml").write_text("parameterization: v")
    with pytest.raises(ValueError, match="lie beside it"):
        with_file_config(SD15, source)


def test_a_yaml_of_something_else_is_passed_over_with_a_note(tmp_path, capsys):
    assert read(yaml="timesteps: 50\nlayer: 3\n", folder=tmp_path) == SD15
    assert "model.yaml: no description of a model" in capsys.readouterr().err


def test_metadata_of_a_trainer_tells_the_prediction_and_contradictions_are_refused(tmp_path):
    for said, schedule in (("v", V), ("epsilon", SD15.schedule)):
        assert read(metadata={"modelspec.prediction_type": said}).schedule == schedule
    with pytest.raises(ValueError, match="prediction 'flow': use one of eps, v"):
        read(metadata={"modelspec.prediction_type": "flow"})
    mark = {"v_pred": torch.zeros(0)}
    with pytest.raises(ValueError, match=r"eps \(\.yaml\), v \(mark v_pred\)\. Choose with --prediction"):
        read(mark, yaml="parameterization: eps", folder=tmp_path)
    assert read(mark, yaml="parameterization: eps", folder=tmp_path, prediction="v").schedule == V


def test_a_mark_or_yaml_of_pure_noise_counts_more_than_ordinary_buffers(tmp_path, capsys):
    noise = dataclasses.replace(V, zero_terminal_snr=True)
    own = buffers(make_schedule(SD15.schedule))
    assert read(own | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}).schedule == noise
    yaml = "parameterization: v\nrescale_betas_zero_snr: True"
    assert read(own, yaml=yaml, folder=tmp_path).schedule == noise
    assert capsys.readouterr().err == ""
    other = buffers(make_schedule(dataclasses.replace(SD15.schedule, beta_end=0.02)))
    assert read(other, yaml=yaml, folder=tmp_path).schedule == dataclasses.replace(noise, beta_end=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["betas", "alphas_cumprod", "sqrt_alphas_cumprod"])
def test_another_schedule_is_told_from_each_of_its_buffers_in_half_precision_too(name, dtype):
    other = dataclasses.replace(SD15.schedule, beta_start=0.0015, beta_end=0.0195)
    assert read({name: buffers(make_schedule(other))[name].to(dtype)}).schedule == other


def test_an_end_that_is_all_but_pure_noise_is_pure_noise():
    noise = dataclasses.replace(V, zero_terminal_snr=True)
    alpha_bar = buffers(make_schedule(noise))["alphas_cumprod"].float()
    alpha_bar[-1] = 4.8973451890853435e-08  # of A1111
    own = {"alphas_cumprod": alpha_bar, "sqrt_alphas_cumprod": alpha_bar.sqrt()}
    assert read(own, prediction="v").schedule == noise


def test_marks_of_v_prediction_and_of_pure_noise_are_read():
    mark = torch.zeros(0)
    assert read({"v_pred": mark}).schedule == V
    assert read({"v_pred": mark, "ztsnr": mark}).schedule == dataclasses.replace(V, zero_terminal_snr=True)
    with pytest.raises(ValueError, match="state dict: prediction eps with zero_terminal_snr"):
        read({"ztsnr": mark})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_schedule_of_the_config_in_any_type_changes_nothing(dtype, capsys):
    own = {name: value.to(dtype) for name, value in buffers(make_schedule(SD15.schedule)).items()}
    assert read(own) == SD15
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", [("betas",), ("alphas_cumprod",), ("betas", "alphas_cumprod", "sqrt_alphas_cumprod")])
def test_another_scaled_linear_schedule_of_a_file_is_taken_and_noted(names, capsys):
    other = dataclasses.replace(SD15.schedule, beta_start=0.001, beta_end=0.02, timesteps=500)
    own = buffers(make_schedule(other))
    assert read({name: own[name].float() for name in names}).schedule == other
    assert "its own noise schedule is taken: 500 scaled linear betas from 0.001 to 0.02" in capsys.readouterr().err


def test_a_schedule_that_ends_in_noise_is_taken_for_v_and_refused_for_eps():
    noise = dataclasses.replace(V, zero_terminal_snr=True)
    own = {"alphas_cumprod": buffers(make_schedule(noise))["alphas_cumprod"].float()}
    assert read(own, prediction="v").schedule == noise
    with pytest.raises(ValueError, match=r"ends in pure noise, .* say so with --prediction v"):
        read(own)


def test_linear_betas_and_buffers_that_contradict_each_other_are_refused():
    linear = torch.linspace(1e-4, 0.02, 1000)
    ours = buffers(make_schedule(SD15.schedule))
    wrong = [
        {"betas": linear, "alphas_cumprod": (1 - linear).cumprod(0)},
        {"betas": ours["betas"], "alphas_cumprod": (1 - linear).cumprod(0)},
        {"betas": torch.ones(3, 3)},
        {"alphas_cumprod": torch.zeros(1000)},
        {"betas": torch.full((1000,), torch.nan)},
    ]
    for own in wrong:
        with pytest.raises(ValueError, match=r"state dict: .*noise schedule") as error:
            read(own)
        assert "--prediction" not in str(error.value)


def test_an_import_takes_v_from_the_yaml_or_the_option_and_notes_spoilt_position_ids(convert, tmp_path):
    tensors = tiny_compvis("vae", "text", "unet") | {POSITIONS: (torch.arange(77)[None] * 0.583).half()}
    save_file(tensors, tmp_path / "in.safetensors")
    said = {}
    for name, options in (("option", ("--prediction", "v")), ("eps", ())):
        code, _, said[name] = convert(tmp_path / "in.safetensors", "--out", tmp_path / f"{name}.safetensors", *options)
        assert code == 0
        prediction = load_model(tmp_path / f"{name}.safetensors", parts=()).config.schedule.prediction
        assert prediction == {"option": "v", "eps": "eps"}[name]
    assert "note: " in said["eps"]
    assert "position_ids that are not 0, 1, 2 and so on" in said["eps"]


def test_an_export_of_a_v_model_writes_the_yaml_that_gives_the_config_back(export, tmp_path):
    schedule, vae = dataclasses.replace(MICRO.schedule, prediction="v"), dataclasses.replace(MICRO.vae, scale=0.3)
    config = dataclasses.replace(MICRO, schedule=schedule, vae=vae)
    save_model(LatentDiffusion(config), tmp_path / "model.safetensors")
    out = tmp_path / "out.safetensors"
    code, said, _ = export(tmp_path / "model.safetensors", "--format", "compvis", "--out", out)
    assert code == 0
    assert f"wrote {tmp_path / 'out.yaml'}" in said
    assert "v_pred" in load_file(out)
    assert read(yaml=(tmp_path / "out.yaml").read_text(), folder=tmp_path, config=MICRO) == config
    (tmp_path / "new.yaml").write_text("mine")
    code, _, said = export(tmp_path / "model.safetensors", "--format", "compvis", "--out", tmp_path / "new.safetensors")
    assert (code, "new.yaml: the file exists" in said) == (2, True)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_schedule_that_ends_in_noise_comes_back_from_a_compvis_export_without_metadata(export, convert, tmp_path):
    schedule = dataclasses.replace(TINY.schedule, prediction="v", zero_terminal_snr=True)
    save_model(LatentDiffusion(dataclasses.replace(TINY, schedule=schedule)), tmp_path / "model.safetensors")
    code, _, said = export(tmp_path / "model.safetensors", "--format", "compvis", "--out", tmp_path / "out.safetensors")
    assert (code, "zero_terminal_snr" in said) == (0, False)
    save_file(load_file(tmp_path / "out.safetensors"), tmp_path / "stripped.safetensors")
    code, _, said = convert(tmp_path / "stripped.safetensors", "--out", tmp_path / "again.safetensors")
    assert (code, said) == (0, "")
    assert load_model(tmp_path / "again.safetensors", parts=()).config.schedule == schedule


def test_the_yaml_of_an_export_is_that_of_stable_diffusion_15_but_for_what_differs(tmp_path):
    assert yaml_beside(tmp_path / "a.safetensors", SD15) == {}
    (tmp_path / "a.yaml").write_text("parameterization: v")  # of an older export to the same name
    (text,) = yaml_beside(tmp_path / "a.safetensors", SD15).values()
    for line in (
        *('parameterization: "eps"', "linear_start: 0.00085", "linear_end: 0.012", "timesteps: 1000"),
        *("scale_factor: 0.18215", "image_size: 64", "model_channels: 320", "attention_resolutions: [4, 2, 1]"),
        *("channel_mult: [1, 2, 4, 4]", "num_heads: 8", "context_dim: 768", "ch_mult: [1, 2, 4, 4]", "ch: 128"),
    ):
        assert f" {line}\n" in text
    v = dataclasses.replace(TINY, schedule=dataclasses.replace(TINY.schedule, prediction="v"))
    (text,) = yaml_beside(tmp_path / "b.safetensors", v).values()
    assert read(yaml=text, folder=tmp_path, config=TINY) == v
    assert "model_channels: 32\n" in next(iter(yaml_beside(tmp_path / "a.safetensors", US128).values()))
