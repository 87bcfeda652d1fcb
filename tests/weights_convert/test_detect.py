"""Which models are recognised, and what is said of those that cannot be imported."""

import pytest
import torch

from tests.golden.converted import source_from_state_dict
from tests.golden.original import LAYOUTS, PREFIXES, shapes
from weights_convert.detect import detect
from weights_convert.rules import Layout
from weights_convert.sources import Source


def source(*layouts, **shapes_of):
    """Tensors without memory: those of some layouts at sd15 size, and others by name."""
    every = {key: shape for layout in layouts for key, shape in shapes(layout, "sd15").items()} | shapes_of
    return source_from_state_dict({key: torch.empty(shape, device="meta") for key, shape in every.items()})


def test_each_layout_is_recognised_by_its_names():
    found = {layout: [(one.part, one.naming, one.prefix) for one in detect(source(layout))] for layout in LAYOUTS}
    assert found == {
        "compvis_single_file": [
            ("vae", "compvis", PREFIXES["vae"]),
            ("text", "transformers", PREFIXES["text"]),
            ("unet", "compvis", PREFIXES["unet"]),
        ],
        "lllyasviel_controlnet": [("controlnet", "compvis", "control_model.")],
        "diffusers/unet": [("unet", "diffusers", "")],
        "diffusers/vae": [("vae", "diffusers", "")],
        "diffusers/text_encoder": [("text", "transformers", "text_model.")],
        "diffusers/controlnet": [("controlnet", "diffusers", "")],
        "open_clip_text": [("text", "open_clip", "")],
    }


def test_a_whole_controlnet_checkpoint_has_four_parts():
    found = detect(source("compvis_single_file", "lllyasviel_controlnet"))
    assert [layout.part for layout in found] == ["vae", "text", "unet", "controlnet"]


def test_the_older_names_of_the_diffusers_vae_are_told_from_the_newer():
    old = source(**{"encoder.down_blocks.0.x": (1,), "encoder.mid_block.attentions.0.query.weight": (512, 512)})
    assert detect(old) == [Layout("vae", "diffusers_old", "")]


def test_a_component_of_a_folder_keeps_its_name_in_the_prefix():
    folder = source(**{"unet/up_blocks.0.x": (1,), "text_encoder/text_model.x": (1,)})
    assert detect(folder) == [
        Layout("text", "transformers", "text_encoder/text_model."),
        Layout("unet", "diffusers", "unet/"),
    ]


TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
TO_K_DIFFUSERS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("family", "layout", "name", "shape"),
    [
        ("Stable Diffusion XL", "compvis_single_file", "conditioner.embedders.1.model.ln_final.weight", (1280,)),
        ("Stable Diffusion XL", "compvis_single_file", "model.diffusion_model.label_emb.0.0.weight", (1280, 2816)),
        ("Stable Diffusion XL", "compvis_single_file", TO_K, (320, 2048)),
        ("Stable Diffusion XL", "diffusers/unet", TO_K_DIFFUSERS, (320, 2048)),
        ("Stable Diffusion XL", "diffusers/unet", "add_embedding.linear_1.weight", (1280, 2816)),
        ("Stable Diffusion 2.x", "compvis_single_file", "cond_stage_model.model.ln_final.weight", (1024,)),
        ("Stable Diffusion 2.x", "diffusers/unet", TO_K_DIFFUSERS, (320, 1024)),
        ("Stable Diffusion 2.x", "diffusers/controlnet", TO_K_DIFFUSERS, (320, 1024)),
        ("Stable Diffusion 3", None, "model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", (64, 64)),
        ("Flux", None, "double_blocks.0.img_attn.proj.weight", (64, 64)),
        ("Flux", None, "single_transformer_blocks.0.attn.to_k.weight", (64, 64)),
        ("9 input channels", "compvis_single_file", CONV_IN, (320, 9, 3, 3)),
        ("9 input channels", "diffusers/unet", "conv_in.weight", (320, 9, 3, 3)),
        ("8 input channels", "diffusers/unet", "conv_in.weight", (320, 8, 3, 3)),
        ("LoRA", None, "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (4, 320)),
        ("LoRA", None, "unet.down_blocks.0.attentions.0.to_q.lora_A.weight", (4, 320)),
        ("LoRA", None, "down_blocks.0.attentions.0.processor.to_q_lora.down.weight", (4, 320)),
    ],
)
def test_other_models_are_named_with_what_is_supported(family, layout, name, shape):
    with pytest.raises(ValueError, match=rf"this is .*{family}.*Supported are Stable Diffusion 1\.x"):
        detect(source(*[layout] if layout else [], **{name: shape}))


@pytest.mark.parametrize(
    ("folder", "family"), [("text_encoder_2", "Stable Diffusion XL"), ("transformer", "Stable Diffusion 3 or Flux")]
)
def test_a_diffusers_folder_of_another_model_is_named(folder, family, tmp_path):
    (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match=family):
        detect(Source(tmp_path, (), source("diffusers/vae").entries))


def test_unknown_tensors_are_shown():
    with pytest.raises(ValueError, match=r"no known model has these tensors: layer1\.conv, fc\. Supported"):
        detect(source(**{"layer1.conv": (1,), "fc": (1,)}))
    with pytest.raises(ValueError, match="none at all"):
        detect(source())


@pytest.mark.parametrize("shape", [(), (320,)])
def test_a_tensor_of_too_few_axes_is_no_reason_to_stop(shape):
    """It is named as misshaped later."""
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert detect(source_from_state_dict({name: torch.zeros(shape)})) == detect(
        source_from_state_dict({name: torch.zeros(320, 4, 3, 3)})
    )


@pytest.mark.parametrize(
    ("what", "name", "shape"),
    [
        ("a LoRA of a Stable Diffusion XL model", "lora_te2_text_model_x.lora_down.weight", (4, 8)),
        ("a LoRA of a Stable Diffusion XL model", "lora_unet_a_attn2_to_k.lora_down.weight", (4, 2048)),
        ("a LoRA of a Stable Diffusion XL model", "unet.a.attn2.processor.to_k_lora.down.weight", (4, 2048)),
        ("a LoHa", "lora_unet_x.hada_w1_a", (4, 8)),
        ("an OFT", "oft_unet_x.oft_blocks", (4, 8, 8)),
        ("in the names of LyCORIS", "lycoris_unet_x.lora_down.weight", (4, 8)),
    ],
)
def test_an_adapter_that_no_import_takes_is_not_sent_to_one(what, name, shape):
    with pytest.raises(ValueError, match=what) as error:
        detect(source(**{name: shape}))
    assert "import --lora takes it" not in str(error.value)


def test_the_vectors_of_a_plain_word_are_a_textual_inversion_and_other_tensors_are_not():
    for shape in ((768,), (2, 768)):
        with pytest.raises(ValueError, match="this is a textual inversion"):
            detect(source(sks=shape))
    for name, shape in (("sks", (5, 9)), ("fc", (768, 768, 3)), ("a.weight", (2, 768))):
        with pytest.raises(ValueError, match="no known model"):
            detect(source(**{name: shape}))
