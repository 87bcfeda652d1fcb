"""The configs and the tokenizer of a diffusers folder: those of Stable Diffusion 1.5, and what other sizes change."""

import dataclasses
import json
import unicodedata
from itertools import pairwise

import pytest
import regex
import torch

from ldm_us.config import PRESETS, SD15, TINY, US128
from ldm_us.networks.clip import byte_pair_encoding, tokenize
from tests.conftest import MICRO
from tests.golden.original import LAYOUTS
from weights_convert.convert import target_shapes
from weights_convert.diffusers_folder import folder_texts, tokenizer_texts
from weights_convert.expansion import rules_for
from weights_convert.export_command import COMPVIS, DIFFUSERS, original_shape


def tables(config, with_controlnet=True):
    return {n: json.loads(t) for n, t in folder_texts(config, with_controlnet).items() if n.endswith(".json")}


# Fields of the configs of stable-diffusion-v1-5 and of lllyasviel/sd-controlnet-canny, as public copies have them; of
# the scheduler those that PNDM, which that folder names, shares with DDIM.
STABLE_DIFFUSION_15 = {
    "scheduler/scheduler_config.json": {
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "text_encoder/config.json": {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "vocab_size": 49408,
    },
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,  # the field is younger than the folder; its default
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "controlnet/config.json": {
        "_class_name": "ControlNetModel",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb",
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
}


@pytest.mark.parametrize("name", STABLE_DIFFUSION_15)
def test_the_configs_of_sd15_are_those_of_its_folder(name):
    found = tables(SD15)[name]
    assert {field: found.get(field) for field in STABLE_DIFFUSION_15[name]} == STABLE_DIFFUSION_15[name]


def test_the_pipeline_has_no_safety_checker_and_no_controlnet():
    index = tables(SD15)["model_index.json"]
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    assert "controlnet" not in index
    assert "controlnet/config.json" not in folder_texts(TINY, with_controlnet=False)


def test_the_schedule_states_what_the_network_predicts_and_where_ddim_ends():
    schedule = dataclasses.replace(SD15.schedule, prediction="v", final_alpha_bar_one=True, first_timestep=0)
    found = tables(dataclasses.replace(SD15, schedule=schedule))["scheduler/scheduler_config.json"]
    assert (found["prediction_type"], found["set_alpha_to_one"], found["steps_offset"]) == ("v_prediction", True, 0)
    assert tables(SD15)["scheduler/scheduler_config.json"]["prediction_type"] == "epsilon"


def test_us128_has_no_attention_at_full_resolution_and_its_own_numbers_of_groups_blocks_and_heads():
    found = tables(dataclasses.replace(US128, vae=dataclasses.replace(US128.vae, scale=0.25)))
    unet, vae, control = (found[f"{part}/config.json"] for part in ("unet", "vae", "controlnet"))
    assert unet["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    assert unet["up_block_types"] == ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    assert (unet["attention_head_dim"], unet["norm_num_groups"], unet["layers_per_block"]) == (4, 8, 1)
    assert (vae["norm_num_groups"], vae["layers_per_block"], vae["scaling_factor"]) == (8, 1, 0.25)
    assert unet["sample_size"] == 32  # 128 pixels, a quarter
    assert control["conditioning_embedding_out_channels"] == [16, 32, 64]


@pytest.mark.parametrize("config", [*PRESETS.values(), MICRO], ids=lambda config: config.name)
def test_the_configs_state_the_sizes_that_the_weights_beside_them_have(config):
    """Read back from the shapes in the folder, in diffusers' names."""
    every = target_shapes(config)
    shapes = {
        f"{component}/{rule.source}": original_shape(layout, every[rule.targets[0]])
        for component, layout in DIFFUSERS.items()
        for rule in rules_for(config, layout, every)
    }
    found = tables(config)
    for part in ("unet", "controlnet", "vae"):
        table, start = found[f"{part}/config.json"], f"{part}/{'encoder.' if part == 'vae' else ''}"
        widths = table["block_out_channels"]
        assert shapes[f"{start}conv_in.weight"] == (widths[0], 3 if part == "vae" else table["in_channels"], 3, 3)
        for i, width in enumerate(widths):
            block = f"{start}down_blocks.{i}"
            assert shapes[f"{block}.resnets.{table['layers_per_block'] - 1}.conv2.weight"][0] == width
            assert f"{block}.resnets.{table['layers_per_block']}.conv2.weight" not in shapes
            assert (f"{block}.downsamplers.0.conv.weight" in shapes) == (i < len(widths) - 1)
            attends = any(name.startswith(f"{block}.attentions.") for name in shapes)
            assert attends == ("CrossAttn" in table["down_block_types"][i])
        assert f"{start}down_blocks.{len(widths)}.resnets.0.conv1.weight" not in shapes
        assert all(width % table["norm_num_groups"] == 0 for width in widths)
    text, start = found["text_encoder/config.json"], "text_encoder/text_model."
    assert shapes[f"{start}embeddings.token_embedding.weight"] == (text["vocab_size"], text["hidden_size"])
    assert shapes[f"{start}encoder.layers.{text['num_hidden_layers'] - 1}.mlp.fc1.bias"] == (text["intermediate_size"],)
    assert found["unet/config.json"]["cross_attention_dim"] == text["hidden_size"]
    assert found["tokenizer/tokenizer_config.json"]["model_max_length"] == text["max_position_embeddings"]


def test_matrices_of_the_vae_are_convolutions_in_a_compvis_file_and_nowhere_else():
    vae = COMPVIS[1]
    assert original_shape(vae, (512, 512)) == tuple(
        LAYOUTS["compvis_single_file"]["first_stage_model.encoder.mid.attn_1.q.weight"]
    )
    assert original_shape(vae, (512,)) == (512,)
    assert all(original_shape(layout, (4, 4)) == (4, 4) for layout in (*DIFFUSERS.values(), COMPVIS[0], COMPVIS[2]))


# The tokenizer


def bytes_as_letters():
    """CLIP's and GPT-2's way to write any byte as a printable letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_tokenizer(texts):
    """A byte-pair encoder written for this test, which reads the folder's files as transformers does."""
    vocabulary, letters = json.loads(texts["vocab.json"]), bytes_as_letters()
    merges = [tuple(line.split(" ")) for line in texts["merges.txt"].splitlines()[1:]]
    ranks, settings = {pair: rank for rank, pair in enumerate(merges)}, json.loads(texts["tokenizer_config.json"])
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")

    def encode_word(word):
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            i = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == best)
            parts[i : i + 2] = ["".join(best)]
        return [vocabulary[part] for part in parts]

    def encode(prompt):
        text = unicodedata.normalize("NFC", prompt).lower()
        numbers = [number for word in words.findall(text) for number in encode_word(word)]
        start, end, pad = (vocabulary[settings[name]] for name in ("bos_token", "eos_token", "pad_token"))
        length = settings["model_max_length"]
        numbers = [start, *numbers[: length - 2], end]
        return numbers + [pad] * (length - len(numbers))

    return encode


PROMPTS = [
    "",
    "Ultrasound image of a malignant breast",
    "Ultrasound image of a benign breast, lesion 12.5 mm x 8 mm; BI-RADS 4a (no calcification)!",
    "  it's  the radiologist's\tnote:\n don't re-scan, we'll see ",
    "na\u00efve caf\u00e9 \u00b5m \u03b1 \u4e2d\u6587 \U0001f600",
    "aaaaaaaaaaaabbbbbbbb mississippi anticonstitutionnellement",
    "#%& _under_ @home 2024-11-25 {x} [y] <z> ~`^",
    "word " * 100,
    "ultrasonography " * 30,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: repr(prompt[:12]))
def test_the_tokenizer_of_the_folder_gives_the_numbers_of_ours(prompt):
    assert torch.equal(torch.tensor([read_tokenizer(tokenizer_texts(77))(prompt)]), tokenize(prompt))


def test_the_vocabulary_has_every_number_once_and_merges_make_all_but_bytes_and_specials():
    texts = tokenizer_texts(77)
    vocabulary = json.loads(texts["vocab.json"])
    assert list(vocabulary.values()) == list(range(SD15.text.vocabulary))
    assert [vocabulary[name] for name in ("<|startoftext|>", "<|endoftext|>", "!", "a</w>")] == [49406, 49407, 0, 320]
    merges = texts["merges.txt"].splitlines()
    assert merges[0].startswith("#version")
    assert len(merges) - 1 == SD15.text.vocabulary - 2 * 256 - 2
    assert all("".join(line.split(" ")) in vocabulary for line in merges[1:])
    assert len(byte_pair_encoding()[1]) == len(merges) - 1


def test_prompts_are_padded_with_the_end_of_text():
    settings = json.loads(tokenizer_texts(77)["tokenizer_config.json"])
    special = json.loads(tokenizer_texts(77)["special_tokens_map.json"])
    assert settings["pad_token"] == settings["eos_token"] == special["pad_token"] == "<|endoftext|>"
    assert settings["tokenizer_class"] == "CLIPTokenizer"
