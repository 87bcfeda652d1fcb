"""Names of LoRAs: those of diffusers' own modules, in every spelling that diffusers and kohya's scripts have had."""

import dataclasses
from collections import Counter

import pytest

from ldm_us.config import PRESETS, SD15
from tests.golden.original import LAYOUTS
from weights_convert.lora_names import layers, names_of, spellings, split_name

UNET = "unet.encoder.levels.1.transformers.0.block"
TEXT = "text.blocks.3"
EVERY_SPELLING = [
    *(
        (f"{name}.{ends}.weight", f"{UNET}.self_attention.to_q", kind)
        for name in ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1",)
        for ends, kind in (
            *(("to_q.lora_A", "down"), ("to_q.lora_B", "up"), ("to_q.lora.down", "down"), ("to_q.lora.up", "up")),
            *(("processor.to_q_lora.down", "down"), ("processor.to_q_lora.up", "up")),
        )
    ),
    (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
        f"{UNET}.cross_attention.to_out",
        "up",
    ),
    ("unet.down_blocks.1.attentions.0.proj_in.lora.down.weight", f"{UNET.removesuffix('.block')}.proj_in", "down"),
    (
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj.alpha",
        f"{UNET}.feed_forward.proj_in",
        "alpha",
    ),
    (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight",
        f"{UNET}.cross_attention.to_out",
        "up",
    ),
    *(
        (f"{start}encoder.layers.3.{end}.weight", f"{TEXT}.{module}", kind)
        for start in ("text_encoder.text_model.", "text_encoder.")
        for end, module, kind in (
            ("self_attn.out_proj.lora_A", "attention.to_out", "down"),
            ("self_attn.k_proj.lora_linear_layer.up", "attention.to_k", "up"),
            ("self_attn.to_k_lora.up", "attention.to_k", "up"),
            ("mlp.fc2.lora_linear_layer.down", "mlp_out", "down"),
        )
    ),
    *(
        (f"lora_{start}_text_model_encoder_layers_3_{end}.lora_down.weight", f"{TEXT}.{module}", "down")
        for start in ("te", "te1")
        for end, module in (("self_attn_q_proj", "attention.to_q"), ("mlp_fc1", "mlp_in"))
    ),
]


def real_modules(part):
    """Every linear layer and convolution of diffusers' SD 1.5, from the names and shapes of its files."""
    component = {"unet": "unet", "text": "text_encoder"}[part]
    return {
        name.removesuffix(".weight")
        for name, shape in LAYOUTS[f"diffusers/{component}"].items()
        if name.endswith(".weight")
        and len(shape) > 1
        and not name.startswith("embeddings.")
        and "_model.embeddings." not in name
    }


@pytest.mark.parametrize(
    ("naming", "unet", "text"), [("diffusers", "unet.", "text_encoder."), ("kohya", "lora_unet_", "lora_te_")]
)
def test_names_written_are_those_of_every_module_of_diffusers(naming, unet, text):
    names = names_of(layers(SD15), naming)
    expected = {f"{unet}{name}" for name in real_modules("unet")} | {f"{text}{name}" for name in real_modules("text")}
    if naming == "kohya":
        expected = {name.replace(".", "_") for name in expected}
    assert Counter(names.values()) == Counter(expected)
    assert len(names) == 282 + 72


def test_one_name_of_each_naming_is_as_kohya_and_diffusers_document_it():
    module = "unet.encoder.levels.0.transformers.0.block.self_attention.to_q"
    text = "text.blocks.0.attention.to_q"
    assert names_of([module, text], "diffusers") == {
        module: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        text: "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    }
    assert names_of([module, text], "kohya") == {
        module: "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        text: "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    }


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_module_of_every_preset_has_a_name_that_leads_back_to_it(preset, naming):
    config = PRESETS[preset]
    names, back = names_of(layers(config), naming), spellings(config)
    assert names.keys() == layers(config).keys()
    assert all(back[theirs] == ours for ours, theirs in names.items())


@pytest.mark.parametrize(("name", "module", "kind"), EVERY_SPELLING)
def test_every_spelling_leads_to_its_module(name, module, kind):
    theirs, found = split_name(name)
    assert (spellings(SD15)[theirs], found) == (module, kind)


@pytest.mark.parametrize("name", ["unet.conv_in.weight", "lora_unet_conv_in.hada_w1_a", "lora_unet_conv_in.diff", ""])
def test_what_is_no_part_of_an_update_has_no_kind(name):
    assert split_name(name) is None


@pytest.mark.parametrize("module", ["unet.encoder.levels.7.res.0.conv_1", "unet.colour", "vae.encoder.conv_in"])
def test_a_module_without_a_name_is_refused(module):
    with pytest.raises(ValueError, match=f"{module}: the names of kohya have none for this module"):
        names_of([module], "kohya")


def test_an_attention_at_the_deepest_level_has_a_name_though_sd15_has_none_there():
    deepest = dataclasses.replace(SD15, unet=dataclasses.replace(SD15.unet, attention=(False, False, False, True)))
    names = names_of([name for name in layers(deepest) if ".levels.3.transformers.0.proj_in" in name], "diffusers")
    assert names == {
        "unet.encoder.levels.3.transformers.0.proj_in": "unet.down_blocks.3.attentions.0.proj_in",
    }
