"""weights_convert/folder_settings.py: no field of a diffusers folder that changes numbers is passed over."""

import dataclasses
import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_us.config import SD15, TINY
from tests.golden.original import tiny_compvis, to_diffusers
from tests.weights_convert.test_diffusers_folder import STABLE_DIFFUSION_15
from weights_convert.diffusers_folder import folder_texts
from weights_convert.folder_settings import KNOWN, with_folder_config
from weights_convert.rules import SURPLUS_LAYERS
from weights_convert.source_config import choose_config
from weights_convert.sources import open_source

SCHEDULER, TEXT, UNET, VAE = (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
CONTROLNET, TOKENIZER, INDEX = "controlnet/config.json", "tokenizer/tokenizer_config.json", "model_index.json"


@cache
def tables():
    texts = folder_texts(TINY, with_controlnet=True).items()
    return {name: json.loads(text) for name, text in texts if name in KNOWN}


def write(folder, changed, base=None):
    """The .json files of a folder, some fields of one of them changed; None: without that field."""
    for name, fields in (tables() if base is None else base).items():
        fields = {k: v for k, v in (fields | changed.get(name, {})).items() if v is not ...}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(fields))
    return folder


def test_the_folder_of_an_export_and_that_of_stable_diffusion_15_say_what_the_config_says(tmp_path, capsys):
    assert with_folder_config(TINY, write(tmp_path / "tiny", {})) == TINY
    assert with_folder_config(SD15, write(tmp_path / "sd15", {}, STABLE_DIFFUSION_15)) == SD15
    assert capsys.readouterr() == ("", "")


READ = [  # file, fields there -> fields of the config
    (UNET, {"attention_head_dim": 8}, {"unet": {"heads": 8}}),
    (UNET, {"attention_head_dim": [8, 8, 8, 8]}, {"unet": {"heads": 8}}),
    (UNET, {"norm_num_groups": 16}, {"unet": {"groups": 16}}),
    (VAE, {"norm_num_groups": 16, "scaling_factor": 0.5}, {"vae": {"groups": 16, "scale": 0.5}}),
    (VAE, {"scaling_factor": ...}, {"vae": {"scale": 0.18215}}),
    (TEXT, {"num_attention_heads": 8, "num_hidden_layers": 1}, {"text": {"heads": 8, "layers": 1}}),
    (SCHEDULER, {"set_alpha_to_one": True}, {"schedule": {"final_alpha_bar_one": True}}),
    (SCHEDULER, {"num_train_timesteps": 500}, {"schedule": {"timesteps": 500}}),
    (SCHEDULER, {"beta_start": ..., "beta_end": ...}, {"schedule": {"beta_start": 0.0001, "beta_end": 0.02}}),
]


@pytest.mark.parametrize(("name", "fields", "ours"), READ)
def test_what_a_config_has_a_place_for_is_read(name, fields, ours, tmp_path):
    both = {name: fields} | ({CONTROLNET: fields} if name == UNET else {})
    expected = {table: dataclasses.replace(getattr(TINY, table), **own) for table, own in ours.items()}
    assert with_folder_config(TINY, write(tmp_path, both)) == dataclasses.replace(TINY, **expected)


REFUSED = [
    *((UNET, {"norm_eps": 1e-6}), (UNET, {"act_fn": "gelu"}), (UNET, {"class_embed_type": "timestep"})),
    *((UNET, {"resnet_time_scale_shift": "scale_shift"}), (UNET, {"dual_cross_attention": True})),
    *((UNET, {"only_cross_attention": [True, True, True, False]}), (UNET, {"conv_in_kernel": 5})),
    *((UNET, {"attention_head_dim": [5, 10, 20, 20]}), (UNET, {"attention_head_dim": 7})),
    *((UNET, {"addition_embed_type": "text"}), (UNET, {"block_out_channels": [64, 64, 128, 128]})),
    *((UNET, {"layers_per_block": 3}), (UNET, {"flip_sin_to_cos": False}), (UNET, {"freq_shift": 1})),
    *((UNET, {"time_cond_proj_dim": 256}), (UNET, {"cross_attention_dim": 1024}), (UNET, {"norm_eps": ""})),
    *((CONTROLNET, {"global_pool_conditions": True}), (CONTROLNET, {"controlnet_conditioning_channel_order": "bgr"})),
    *((CONTROLNET, {"attention_head_dim": 8}), (TEXT, {"hidden_act": "gelu"}), (TEXT, {"layer_norm_eps": 1e-6})),
    *((TEXT, {"num_attention_heads": 5}), (TEXT, {"num_hidden_layers": True}), (VAE, {"shift_factor": 0.1})),
    *((VAE, {"latents_mean": [0.1]}), (VAE, {"mid_block_add_attention": False}), (VAE, {"act_fn": "relu"})),
    *((SCHEDULER, {"thresholding": True}), (SCHEDULER, {"trained_betas": [0.1]}), (SCHEDULER, {"beta_schedule": ...})),
    *((SCHEDULER, {"set_alpha_to_one": "yes"}), (TOKENIZER, {"pad_token": "!"}), (TOKENIZER, {"do_lower_case": False})),
    *((SCHEDULER, {"use_flow_sigmas": True}), (UNET, {"quantization_config": {"load_in_4bit": True}})),
    *((TEXT, {"quantization_config": {"load_in_8bit": True}}), (UNET, {"num_attention_heads": 8})),
    (INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}),
]


@pytest.mark.parametrize(("name", "fields"), REFUSED)
def test_every_other_value_is_refused_with_file_field_and_value(name, fields, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        with_folder_config(TINY, write(tmp_path, {name: fields}))
    ((field, value),) = fields.items()
    if field not in ("beta_schedule", "trained_betas") and value not in (7, 5):  # whose sentences are their own
        assert f"{name}: {field} is {value!r}" in str(error.value)


def test_what_changes_no_number_is_silent_and_what_is_not_known_is_noted(tmp_path, capsys):
    harmless = {"use_linear_projection": True, "upcast_attention": True, "sample_size": 96, "new": None, "newer": False}
    added = {"49407": {"content": "<|endoftext|>"}}
    changed = {
        UNET: harmless | {"only_cross_attention": [False] * 4, "layers_per_block": [2, 2, 2, 2]},
        VAE: {"force_upcast": False},
        SCHEDULER: {"skip_prk_steps": True, "clip_sample": True, "solver_order": 3, "steps_offset": 0},
        TEXT: {"bos_token_id": 0, "dropout": 0.1, "dtype": "float16"},
        TOKENIZER: {"pad_token": {"content": "<|endoftext|>", "lstrip": False}, "added_tokens_decoder": added},
        INDEX: {"safety_checker": ["x", "y"], "image_encoder": [None, None]},
    }
    assert with_folder_config(TINY, write(tmp_path, changed)) == TINY
    assert capsys.readouterr().err == ""
    write(tmp_path, {UNET: {"gated_magic": 3}})
    assert with_folder_config(TINY, tmp_path) == TINY
    assert f"note: {tmp_path / UNET}: not known here: gated_magic 3." in capsys.readouterr().err


EQUAL = [
    (INDEX, {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}),
    (INDEX, {"controlnet": ["diffusers", "ControlNetModel"]}),
    (TOKENIZER, {"model_max_length": 1000000000000000019884624838656, "processor_class": "CLIPProcessor"}),
    *((UNET, {"act_fn": "swish"}), (VAE, {"act_fn": "swish"}), (TEXT, {"output_hidden_states": True})),
    (CONTROLNET, {"num_attention_heads": TINY.unet.heads, "attention_head_dim": 8}),
    (UNET, {"decay": 0.9999, "inv_gamma": 1.0, "power": 0.6667, "optimization_step": 15000}),
    (SCHEDULER, {"use_flow_sigmas": False, "flow_shift": 3.0, "time_shift_type": "exponential"}),
]


@pytest.mark.parametrize(("name", "fields"), EQUAL)
def test_other_words_for_what_is_here_are_silent(name, fields, tmp_path, capsys):
    assert with_folder_config(TINY, write(tmp_path, {name: fields})) == TINY
    assert capsys.readouterr().err == ""


def test_a_pipeline_of_several_controlnets_is_noted(tmp_path, capsys):
    several = ["diffusers.pipelines.controlnet.multicontrolnet", "MultiControlNetModel"]
    assert with_folder_config(TINY, write(tmp_path, {INDEX: {"controlnet": several}})) == TINY
    assert "model_index.json: not known here: controlnet" in capsys.readouterr().err


def test_sizes_beyond_the_limits_are_refused_before_a_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("weights_convert.folder_settings.target_shapes", None)
    for name, fields in ((TEXT, {"num_hidden_layers": 10**5}), (SCHEDULER, {"num_train_timesteps": 10**5 + 1})):
        with pytest.raises(ValueError, match="is no whole number from 0 to"):
            with_folder_config(TINY, write(tmp_path, {name: fields}))


CLASSES = [  # of a scheduler, its fields, what is read
    ("DDIMScheduler", {}, {"final_alpha_bar_one": True}),
    ("PNDMScheduler", {}, {}),
    ("LCMScheduler", {"beta_start": ..., "beta_end": ..., "beta_schedule": ...}, {"final_alpha_bar_one": True}),
    ("TCDScheduler", {"beta_start": ..., "beta_end": ..., "beta_schedule": ...}, {"final_alpha_bar_one": True}),
    ("HeunDiscreteScheduler", {"beta_start": ..., "beta_end": ...}, {}),
]


@pytest.mark.parametrize(("kind", "fields", "read"), CLASSES)
def test_fields_left_out_have_the_defaults_of_the_kind_of_scheduler(kind, fields, read, tmp_path):
    left_out = {"_class_name": kind, "set_alpha_to_one": ...} | fields
    expected = dataclasses.replace(TINY.schedule, **read)
    assert with_folder_config(TINY, write(tmp_path, {SCHEDULER: left_out})).schedule == expected


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_grid_left_out_is_that_of_the_kind_of_scheduler(kind, tmp_path, capsys):
    with_folder_config(TINY, write(tmp_path, {SCHEDULER: {"_class_name": kind, "timestep_spacing": ...}}))
    assert "timestep_spacing 'linspace'" in capsys.readouterr().err


def test_a_leading_grid_of_a_schedule_that_ends_in_noise_is_noted(tmp_path, capsys):
    own = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "leading"}
    schedule = with_folder_config(TINY, write(tmp_path, {SCHEDULER: own})).schedule
    assert (schedule.zero_terminal_snr, schedule.spacing) == (True, "leading")
    assert "ends in pure noise, where its leading grid of timesteps does not start" in capsys.readouterr().err


def test_the_folder_of_one_part_is_held_to_the_same_rules(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tables()[CONTROLNET] | {"global_pool_conditions": True}))
    with pytest.raises(ValueError, match="global_pool_conditions is True"):
        with_folder_config(TINY, tmp_path, ("controlnet",))
    assert with_folder_config(TINY, tmp_path, ("vae",)) == TINY  # not asked
    whole_clip = {"model_type": "clip", "text_config": tables()[TEXT] | {"hidden_act": "gelu"}}
    (tmp_path / "config.json").write_text(json.dumps(whole_clip))
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        with_folder_config(TINY, tmp_path, ("text",))


def test_a_text_encoder_has_as_many_layers_as_its_config_says(convert, tmp_path):
    base = {name: fields for name, fields in tables().items() if name != CONTROLNET}
    folder = write(tmp_path / "folder", {TEXT: {"num_hidden_layers": 1}}, base)
    for component, part in {"unet": "unet", "vae": "vae", "text_encoder": "text"}.items():
        stem = "model" if part == "text" else "diffusion_pytorch_model"
        save_file(to_diffusers(tiny_compvis(part), part), folder / component / f"{stem}.safetensors")
    code, said, error = convert(folder, "--out", tmp_path / "out.safetensors")
    assert (code, error) == (0, "")
    assert f"ignored   16: {SURPLUS_LAYERS}" in said
    layers = {name.split(".")[2] for name in load_file(tmp_path / "out.safetensors") if name.startswith("text.blocks.")}
    assert layers == {"0"}


def test_another_family_of_models_is_named_before_its_first_strange_setting(tmp_path):
    write(tmp_path, {UNET: {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}})
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    save_file({name: torch.zeros(4, 1024)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"a Stable Diffusion 2\.x model"):
        choose_config(open_source(tmp_path), "tiny")
