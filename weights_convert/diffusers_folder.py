"""What a diffusers folder holds beside its weights: the configs and the tokenizer that StableDiffusionPipeline reads.

The fields of the folder of Stable Diffusion 1.5: those that every model here shares are in diffusers_folder.json, those
of a config of ours are filled in here. What differs from that folder: the scheduler is DDIM, which sample.py uses, and
clips nothing, for latents exceed 1; there is no safety checker, and a ControlNet, which is no part of the pipeline, is
loaded by itself; the text encoder has the numbers that its tokenizer gives to start, end and padding; the version is
one from 0.9 on, below which diffusers would take small latents for a mistake; weights are loaded as float32 unless told
otherwise. Fields that are left out take the defaults of the constructors of diffusers 0.42.
"""

import json
from pathlib import Path
from typing import Any

import torch

from ldm_us.config import ModelConfig, ScheduleConfig, UNetConfig
from ldm_us.diffusion.ddpm import end_in_noise, make_schedule
from ldm_us.networks.clip import byte_pair_encoding
from ldm_us.networks.controlnet import hint_channels

START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's names, which open_clip's file of merges leaves out
SPECIAL = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")

Fields = dict[str, Any]
FIXED: dict[str, Fields] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="ascii"))


def folder_texts(config: ModelConfig, with_controlnet: bool) -> dict[str, str]:
    """The contents of every file that holds no weights, by its path in the folder."""
    own = fields_by_file(config)
    if not with_controlnet:
        del own["controlnet/config.json"]
    texts = {name: json.dumps(FIXED[name] | own[name], indent=2, sort_keys=True) + "\n" for name in own}
    return texts | {f"tokenizer/{name}": text for name, text in tokenizer_texts(config.text.length).items()}


def fields_by_file(config: ModelConfig) -> dict[str, Fields]:
    """The fields that depend on the config; the scheduler is DDIM on the grid and to the end of the schedule here."""
    schedule, text, vae, encoder = config.schedule, config.text, config.vae, encoder_fields(config.unet)
    return {
        "model_index.json": {},
        "scheduler/scheduler_config.json": {
            "num_train_timesteps": schedule.timesteps,
            "beta_schedule": beta_schedule(schedule),
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "steps_offset": schedule.first_timestep,
            "set_alpha_to_one": schedule.final_alpha_bar_one,
            "prediction_type": PREDICTIONS[schedule.prediction],
            "rescale_betas_zero_snr": schedule.zero_terminal_snr,
            "timestep_spacing": schedule.spacing,
        },
        "text_encoder/config.json": {
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.length,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "projection_dim": text.width,  # of a projection that Stable Diffusion does not have
        },
        "unet/config.json": encoder
        | {
            "out_channels": config.unet.latent_channels,
            "up_block_types": [f"{'CrossAttn' * attends}UpBlock2D" for attends in reversed(config.unet.attention)],
            "sample_size": config.image_size // vae.downsampling,
        },
        "vae/config.json": {
            "latent_channels": vae.latent_channels,
            "block_out_channels": [vae.width * multiplier for multiplier in vae.multipliers],
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.multipliers),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.multipliers),
            "layers_per_block": vae.res_blocks,
            "norm_num_groups": vae.groups,
            "sample_size": config.image_size,
            "scaling_factor": vae.scale,
        },
        "controlnet/config.json": encoder
        | {
            "conditioning_channels": hint_channels(config.control.hint),
            "conditioning_embedding_out_channels": list(config.control.hint_channels),
        },
    }


def beta_schedule(config: ScheduleConfig) -> str:
    """diffusers' word for how the betas run; "" where it has none. Computed anew, to notice a changed make_schedule."""
    roots = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=torch.float64)
    alpha_bar = (1 - roots**2).cumprod(dim=0)
    alpha_bar = end_in_noise(alpha_bar) if config.zero_terminal_snr else alpha_bar
    return "scaled_linear" if torch.allclose(alpha_bar, make_schedule(config).alpha_bar, rtol=1e-9, atol=0) else ""


def encoder_fields(config: UNetConfig) -> Fields:
    """What a UNet and a ControlNet say of the left half and the middle."""
    return {
        "in_channels": config.latent_channels,
        "block_out_channels": [config.width * multiplier for multiplier in config.multipliers],
        "down_block_types": [f"{'CrossAttn' * attends}DownBlock2D" for attends in config.attention],
        "layers_per_block": config.res_blocks,
        "attention_head_dim": config.heads,  # diffusers' name for the NUMBER of heads, since the first SD folders
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.groups,
    }


def tokenizer_texts(length: int) -> dict[str, str]:
    """CLIP's tokenizer in transformers' files: it gives the numbers of our tokenize, padding included."""
    vocabulary, merges = byte_pair_encoding()
    start, end = len(vocabulary) - 2, len(vocabulary) - 1  # the last two; open_clip writes them in another way
    words = {number: word for word, number in vocabulary.items()} | {start: START, end: END}
    return {
        "vocab.json": json.dumps({words[number]: number for number in range(len(words))}) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n",
        "special_tokens_map.json": json.dumps(SPECIAL, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(tokenizer_settings(length), indent=2) + "\n",
    }


def tokenizer_settings(length: int) -> Fields:
    """The fields of tokenizer_config.json."""
    settings: Fields = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    return settings | SPECIAL
