"""What a diffusers folder holds beside its weights: the configs and the tokenizer that StableDiffusionPipeline reads.

The fields of the folder of Stable Diffusion 1.5, filled from a config of ours. What differs from it: the scheduler is
DDIM, which sample.py uses; there is no safety checker; the text encoder has the numbers that its tokenizer gives to
start, end and padding. Fields that are left out here take the defaults of the constructors of diffusers 0.42.
"""

import json
from typing import Any

from ldm_us.config import ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from ldm_us.networks.clip import byte_pair_encoding

VERSION = "0.42.1"  # of diffusers; below 0.9 it would take small latents for a mistake
START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's names, which open_clip's file of merges leaves out
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}

Fields = dict[str, Any]


TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


def folder_texts(config: ModelConfig, with_controlnet: bool) -> dict[str, str]:
    """The contents of every file that holds no weights, by its path in the folder."""
    tables = {
        "model_index.json": model_index(),
        "scheduler/scheduler_config.json": scheduler_config(config.schedule),
        "text_encoder/config.json": text_config(config.text),
        "unet/config.json": unet_config(config),
        "vae/config.json": vae_config(config.vae, config.image_size),
    }
    if with_controlnet:
        tables["controlnet/config.json"] = controlnet_config(config)
    texts = {name: json.dumps(table, indent=2, sort_keys=True) + "\n" for name, table in tables.items()}
    return texts | {f"tokenizer/{name}": text for name, text in tokenizer_texts(config.text.length).items()}


def model_index() -> Fields:
    """Which class reads which folder. A ControlNet is no part of this pipeline: its folder is loaded by itself."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def scheduler_config(config: ScheduleConfig) -> Fields:
    """DDIM on the grid and to the end that the schedule has here."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": config.timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": "scaled_linear",  # the square roots of the betas are linear
        "trained_betas": None,
        "steps_offset": config.first_timestep,
        "set_alpha_to_one": config.final_alpha_bar_one,
        "prediction_type": PREDICTIONS[config.prediction],
        "timestep_spacing": "leading",
        "clip_sample": False,  # latents exceed 1
        "rescale_betas_zero_snr": False,
    }


def text_config(config: TextConfig) -> Fields:
    """CLIP's text tower."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.length,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "projection_dim": config.width,  # of a projection that Stable Diffusion does not have
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
        "torch_dtype": "float32",  # as diffusers loads the other parts, whatever the file's type, unless told
    }


def vae_config(config: VAEConfig, image_size: int) -> Fields:
    """The autoencoder; every level is of one kind."""
    levels = len(config.multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "block_out_channels": [config.width * multiplier for multiplier in config.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.groups,
        "act_fn": "silu",
        "sample_size": image_size,
        "scaling_factor": config.scale,
    }


def unet_config(config: ModelConfig) -> Fields:
    """The denoiser."""
    up = ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(config.unet.attention)]
    return encoder_config(config.unet) | {
        "_class_name": "UNet2DConditionModel",
        "out_channels": config.unet.latent_channels,
        "up_block_types": up,
        "center_input_sample": False,
        "sample_size": config.image_size // config.vae.downsampling,
    }


def controlnet_config(config: ModelConfig) -> Fields:
    """The ControlNet: the same left half, and the hint network."""
    return encoder_config(config.unet) | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": list(config.control.hint_channels),
        "controlnet_conditioning_channel_order": "rgb",
    }


def encoder_config(config: UNetConfig) -> Fields:
    """What a UNet and a ControlNet say of the left half and the middle."""
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention]
    return {
        "_diffusers_version": VERSION,
        "in_channels": config.latent_channels,
        "block_out_channels": [config.width * multiplier for multiplier in config.multipliers],
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "layers_per_block": config.res_blocks,
        "attention_head_dim": config.heads,  # diffusers' name for the NUMBER of heads, since the first SD folders
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "flip_sin_to_cos": True,  # cosines first
        "freq_shift": 0,
    }


def tokenizer_texts(length: int) -> dict[str, str]:
    """CLIP's tokenizer in transformers' files: it gives the numbers of our tokenize, padding included."""
    vocabulary, merges = byte_pair_encoding()
    start, end = len(vocabulary) - 2, len(vocabulary) - 1  # the last two; open_clip writes them in another way
    words = {number: word for word, number in vocabulary.items()} | {start: START, end: END}
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    return {
        "vocab.json": json.dumps({words[number]: number for number in range(len(words))}) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(settings | special, indent=2) + "\n",
    }
