"""Every model that is not of SD 1.5's kind, in every export: files or a note say so, or it is refused by name."""

import dataclasses
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from safetensors import safe_open

from ldm_us.config import BUNDLED, PRESETS, SD15, US128, US128_V, config_from_dict, config_to_dict
from ldm_us.diffusion import ddpm
from ldm_us.diffusion.grain import Grain
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.start_prior import StartPrior
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.files.lora_file import save_lora
from ldm_us.networks.lora import LoRAConfig, add_lora
from ldm_us.runtime.entry import run_command
from tests.conftest import MICRO
from weights_convert import diffusers_folder, file_settings
from weights_convert.__main__ import main as weights_convert_main
from weights_convert.diffusers_folder import folder_texts
from weights_convert.export_command import notes, without_ours
from weights_convert.file_settings import marks, yaml_beside
from weights_convert.summary import in_yaml, unlike_sd15

LAYOUTS = ("compvis", "diffusers", "controlnet")
TAKEN = {"compvis": {"unet", "vae", "text"}, "controlnet": {"controlnet"}}
TAKEN["diffusers"] = TAKEN["compvis"] | TAKEN["controlnet"]
NEITHER = {  # fields that no export says, and why none has to
    "config.name": "a name",
    "schedule.start_prior": "of a part: `left out: prior`",
    "schedule.prior_prompts": "of the same",
    "vae.whitened": "read by training alone",
    "vae.grain": "of a part: `left out: grain`",
    "vae.grain_bands": "of the same",
    "vae.noise_levels": "of tensors: `left out: vae.decoder.noise_gains`",
}
ABSENT = {  # format -> the tables of a config that are of parts it does not hold
    "compvis": {"control"},
    "diffusers": set(),
    "controlnet": {"vae", "text"},
}
ELSEWHERE = {"compvis": {"control.guidance", "control.scale"}}  # of a part that is not in the file
AS_FOLDERS_HAVE = {"schedule.zero_terminal_snr": {"prediction": "v"}}  # what a value needs beside it
OTHER = {"prediction": "v", "spacing": "trailing", "guidance": 2.5, "multipliers": (1, 2, 2, 2), "groups": 16}
OTHER |= {"attention": (True, True, False, False), "hint_channels": (16, 32, 64, 128), "heads": 4}


def other_value(field):
    """A value that is not the default's, and as possible as that."""
    value = field.default
    if field.name in OTHER:
        return OTHER[field.name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return ("a prompt",)
    return 2 * value if value else 2


def changed_configs():
    """SD 1.5 with one field changed: (name of the field, config), for every field of every table."""
    yield "config.name", replace(SD15, name="another")
    yield "config.image_size", replace(SD15, image_size=256)
    for table in fields(SD15):
        part = getattr(SD15, table.name)
        if dataclasses.is_dataclass(part):
            for field in fields(part):
                name = f"{table.name}.{field.name}"
                values = {field.name: other_value(field)} | AS_FOLDERS_HAVE.get(name, {})
                yield name, replace(SD15, **{table.name: replace(part, **values)})


CHANGED = dict(changed_configs())
REFUSED = {"text.prompt_tokens"}  # tests/weights_convert/test_export.py


def said(format, config, folder):
    """All that an export says of a config, in files and in words, but for what its metadata keeps for us."""
    plain, taken = without_ours(config), TAKEN[format]
    texts = [*notes(folder / "out.safetensors", format, plain, taken)]
    if format == "diffusers":
        texts += [f"{name}: {text}" for name, text in folder_texts(plain, with_controlnet=True).items()]
    if format == "compvis":
        texts += [
            *yaml_beside(folder / "out.safetensors", plain).values(),
            *(mark.name for mark in marks(plain.schedule)),
        ]
    return texts


def test_each_field_that_is_listed_here_exists():
    listed = {*NEITHER, *REFUSED, *AS_FOLDERS_HAVE, *(name for names in ELSEWHERE.values() for name in names)}
    assert listed - CHANGED.keys() == set()
    assert {name.split(".")[0] for name in CHANGED} == {"config", "schedule", "vae", "text", "unet", "control"}


@pytest.mark.parametrize("format", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in CHANGED if name not in REFUSED])
def test_a_field_that_is_not_sd15s_changes_what_an_export_says(name, format, tmp_path):
    """Were a field to be added tomorrow, it is here too."""
    table = name.split(".")[0]
    silent = name in NEITHER or table in ABSENT[format] or name in ELSEWHERE.get(format, ())
    if name == "config.image_size" and format == "diffusers":
        silent = False  # sample_size
    assert (said(format, CHANGED[name], tmp_path) == said(format, SD15, tmp_path)) == silent


def of_kind(name):
    """A small model of each kind, with a ControlNet; no tensor of it is zero all over."""
    schedule, vae = MICRO.schedule, MICRO.vae
    config = {
        "us128": US128,
        "us128_v, whitened": US128_V,
        "v": replace(MICRO, schedule=replace(schedule, prediction="v")),
        "pure noise": replace(MICRO, schedule=replace(schedule, prediction="v", zero_terminal_snr=True)),
        "noise levels": replace(MICRO, vae=replace(vae, noise_levels=2)),
        "other betas": replace(MICRO, schedule=replace(schedule, beta_end=0.02, timesteps=500)),
    }.get(name, MICRO)
    model = LatentDiffusion(config)
    model.add_controlnet()
    if name == "prior and grain":
        model.set_prior(StartPrior(4, 2, ("a prompt",)))
        model.set_grain(Grain(2))
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        value.normal_(generator=generator)
    return model


KINDS = {  # kind -> format -> what is said of it, in words or in the files
    "us128": {
        "compvis": ("unet.width 32", "vae.multipliers (1, 4, 4)", "text.layers 2", "size 128", "schedule.guidance 3"),
        "diffusers": ('"layers_per_block": 1', "guidance_scale=3.0", "controlnet_conditioning_scale=2.0"),
        "controlnet": ("control.hint_channels (16, 32, 64)", "unet.width 32", "control.scale 2", "control.guidance 1"),
    },
    "us128_v, whitened": {
        "compvis": ("v_pred", "ztsnr", 'parameterization: "v"', "schedule.spacing trailing"),
        "diffusers": ('"v_prediction"', '"rescale_betas_zero_snr": true', '"timestep_spacing": "trailing"'),
        "controlnet": ("schedule.prediction v", "schedule.zero_terminal_snr True", "schedule.spacing trailing"),
    },
    "v": {
        "compvis": ("v_pred", 'parameterization: "v"'),
        "diffusers": ('"v_prediction"',),
        "controlnet": ("schedule.prediction v",),
    },
    "pure noise": {
        "compvis": ("ztsnr",),
        "diffusers": ('"rescale_betas_zero_snr": true',),
        "controlnet": ("schedule.zero_terminal_snr True",),
    },
    "noise levels": {
        "compvis": ("vae.decoder.noise_gains: no place for it",),
        "diffusers": ("vae.decoder.noise_gains: no place for it",),
        "controlnet": ("vae: a ControlNet's file holds it alone",),
    },
    "prior and grain": {
        format: ("prior: no place for it", "grain: no place for it")
        for format in ("compvis", "diffusers", "controlnet")
    },
    "other betas": {
        "compvis": ("linear_end: 0.02", "timesteps: 500"),
        "diffusers": ('"beta_end": 0.02', '"num_train_timesteps": 500'),
        "controlnet": ("schedule.beta_end 0.02", "schedule.timesteps 500"),
    },
}


@pytest.fixture
def exported(export, tmp_path):
    """A function: export a model; -> exit code, and all that is said: words, text files, names of tensors."""

    def call(model, format):
        save_model(model, tmp_path / "model.safetensors")
        out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
        code, text, error = export(tmp_path / "model.safetensors", "--format", format, "--out", out)
        written = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".yaml")]
        files = [path.read_text(encoding="utf-8") for path in written if "tokenizer" not in str(path)]
        if format == "compvis" and out.is_file():
            with safe_open(out, "pt") as file:
                files += [name for name in file.keys() if "." not in name]  # noqa: SIM118
        return code, "\n".join([text, error, *files])

    return call


@pytest.mark.parametrize("format", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_of_each_kind_what_it_is(kind, format, exported):
    code, everything = exported(of_kind(kind), format)
    assert code == 0
    assert [words for words in KINDS[kind][format] if words not in everything] == []


@pytest.mark.parametrize("name", ["us128", "us128_base"])
def test_the_bundled_models_are_told_apart_from_sd15(name, export, tmp_path):
    path = BUNDLED.with_name(f"{name}.safetensors")
    code, text, _ = export(path, "--format", "compvis", "--out", tmp_path / "out.safetensors")
    assert code == 0
    assert "note: not as in SD 1.5" in text
    assert f"size {load_model(path, parts=()).config.image_size}" in text


def test_every_preset_but_sd15_is_noted():
    for name, config in PRESETS.items():
        different = [*unlike_sd15(config, TAKEN["compvis"], in_yaml)]
        assert (different == []) == (name == "sd15"), name


def cosine(config):
    """Improved DDPM Eq. 17 (arXiv 2102.09672), in place of the betas that the config says."""
    t = torch.arange(config.timesteps + 1, dtype=torch.float64) / config.timesteps
    f = ((t + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return ddpm.Schedule(beta, 1 - beta, (1 - beta).cumprod(0), config)


@pytest.fixture
def cosine_betas(monkeypatch):
    """The schedule as somebody has rewritten it who changed no field of the config."""
    for module in (ddpm, diffusers_folder, file_settings):
        monkeypatch.setattr(module, "make_schedule", cosine)
    monkeypatch.setattr("ldm_us.diffusion.model.make_schedule", cosine)


@pytest.mark.parametrize("format", ["compvis", "diffusers"])
def test_a_schedule_that_a_layout_has_no_word_for_is_refused_and_nothing_is_written(
    format, exported, cosine_betas, tmp_path
):
    """It was exported as scaled_linear."""
    code, everything = exported(of_kind("micro"), format)
    assert code == 2
    assert (
        f"its noise schedule is not one of scaled linear betas, and --format {format} has no word for it" in everything
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_controlnet_of_another_schedule_is_noted(exported, cosine_betas):
    code, everything = exported(of_kind("micro"), "controlnet")
    assert code == 0
    assert "not as in SD 1.5, and no place for it in this layout: " in everything
    assert "the noise levels. A program" in everything


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_a_lora_is_said_to_be_for_its_base_alone(names, tmp_path, capsys):
    model = LatentDiffusion(config_from_dict(config_to_dict(US128_V)))
    config = LoRAConfig(rank=2, parts=("unet",))
    add_lora(model, config, torch.Generator())
    save_lora(tmp_path / "lora.safetensors", model, config, "ab" * 32)
    words = [
        "export",
        tmp_path / "lora.safetensors",
        "--format",
        "lora",
        "--names",
        names,
        "--out",
        tmp_path / "o.safetensors",
    ]
    assert run_command(partial(weights_convert_main, [str(word) for word in words])) == 0
    assert "note: for its base alone (SHA-256 abababababab)" in capsys.readouterr().out
