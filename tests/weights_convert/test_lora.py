"""LoRAs of ours in the names of diffusers and kohya and back; what a merge of theirs gives; what has no place."""

import dataclasses
import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_us.config import PRESETS, SD15
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import lazy_tensors, load_model, model_metadata, write_safetensors
from ldm_us.files.lora_file import UNKNOWN_BASE, apply_lora, load_lora, save_lora
from ldm_us.networks.lora import LoRAConfig, Update, add_lora, lora_shapes
from ldm_us.runtime.entry import run_command
from weights_convert.__main__ import main
from weights_convert.lora_export import export_lora
from weights_convert.lora_import import import_lora
from weights_convert.lora_names import HEADER, layers

NAMINGS = ("diffusers", "kohya")
ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
OURS = "unet.encoder.levels.0.transformers.0"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0, dtype=torch.float32):
    return (0.1 * torch.randn(shape, generator=generator(seed))).to(dtype)


def write_ours(path, config, lora, dtype=torch.float32, metadata=None):
    """A LoRA file of ours with random numbers, for a model that takes no memory."""
    with torch.device("meta"):
        model = LatentDiffusion(config)
    shapes = lora_shapes(model, lora)
    tensors = {name: random(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    settings = {"ldm_us": "1", "lora": json.dumps(dataclasses.asdict(lora)), "base_sha256": "ab" * 32}
    write_safetensors(path, lazy_tensors(tensors), settings | (metadata or {}))
    return path


def every_module(config):
    """An update of every linear layer and convolution, of three ranks and four alphas."""
    modules = (Update(name, 1 + i % 3, 0.5 + i % 4) for i, name in enumerate(layers(config)))
    return LoRAConfig(parts=(), modules=tuple(modules))


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def there_and_back(path, config, names, tmp_path):
    """Export, then import with a base of which the config alone is there."""
    base, theirs, back = (tmp_path / f"{name}.safetensors" for name in ("sizes", "theirs", "back"))
    write_safetensors(base, [], model_metadata(config))
    export_lora(path, theirs, names, overwrite=True)
    import_lora(theirs, base, back, overwrite=True)
    return load_file(theirs), load_lora(back)


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(found[name].dtype == expected[name].dtype for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("names", NAMINGS)
def test_a_lora_comes_back_bit_for_bit_with_its_settings_and_history(names, dtype, micro, tmp_path):
    for lora in (LoRAConfig(3, 1.3, ("unet", "text"), ("q", "cross.v")), LoRAConfig(2, 2.0), every_module(micro)):
        path = write_ours(tmp_path / "ours.safetensors", micro, lora, dtype, {"steps": "70"})
        theirs, back = there_and_back(path, micro, names, tmp_path)
        assert_same(back.tensors, load_lora(path).tensors)
        assert back.config == lora
        assert (back.base_sha256, back.metadata["steps"]) == ("ab" * 32, "70")
        assert not theirs.keys() & back.tensors.keys()


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("size", ["tiny", "sd15"])
def test_so_do_those_of_the_real_sizes(size, names, tmp_path):
    lora = LoRAConfig(4, 6.0, ("unet", "text"))
    path = write_ours(tmp_path / "ours.safetensors", PRESETS[size], lora)
    theirs, back = there_and_back(path, PRESETS[size], names, tmp_path)
    assert_same(back.tensors, load_lora(path).tensors)
    assert back.config == lora
    updates = 128 + 4 * PRESETS[size].text.layers  # 16 transformers of 8 projections
    assert len(theirs) == updates * (3 if names == "kohya" else 2)


@pytest.mark.parametrize("names", NAMINGS)
def test_an_export_has_the_numbers_of_the_lora_and_the_asked_for_type(names, micro, tmp_path, capsys):
    path = write_ours(tmp_path / "ours.safetensors", micro, LoRAConfig(2, 5.0))
    ours = load_lora(path).tensors
    export_lora(path, out := tmp_path / "out.safetensors", names, "fp16")
    found = load_file(out)
    if names == "kohya":
        prefix, down, up = f"{ATTENTION}_attn1_to_q", "lora_down", "lora_up"
        assert torch.equal(found[f"{prefix}.alpha"], torch.tensor(5.0))
    else:
        prefix, down, up = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "lora_A", "lora_B"
    module = f"{OURS}.block.self_attention.to_q"
    assert torch.equal(found[f"{prefix}.{down}.weight"], ours[f"{module}.lora_down.weight"].half())
    assert torch.equal(found[f"{prefix}.{up}.weight"], ours[f"{module}.lora_up.weight"].half())
    assert "32 updates (32 of unet), rank 2, alpha / rank 2.5" in capsys.readouterr().out


def test_the_header_of_diffusers_holds_rank_and_alpha_of_every_module(micro, tmp_path):
    """As PEFT reads it: one rank and alpha a part, and patterns for the modules that differ."""
    lora = every_module(micro)
    path = write_ours(tmp_path / "ours.safetensors", micro, lora)
    export_lora(path, out := tmp_path / "out.safetensors", "diffusers")
    settings = json.loads(header(out)[HEADER])
    found = {name.removesuffix(".lora_A.weight") for name in load_file(out) if name.endswith(".lora_A.weight")}
    expected = {}
    for start in ("unet.", "text_encoder."):
        for name in settings[f"{start}target_modules"]:
            rank = settings[f"{start}rank_pattern"].get(name, settings[f"{start}r"])
            alpha = settings[f"{start}alpha_pattern"].get(name, settings[f"{start}lora_alpha"])
            full = f"{start}text_model.{name}" if start == "text_encoder." else f"{start}{name}"
            expected[full] = (rank, alpha)
    assert expected.keys() == found
    assert sorted(expected.values()) == sorted((update.rank, update.alpha) for update in lora.modules)
    assert all(load_file(out)[f"{name}.lora_A.weight"].shape[0] == rank for name, (rank, _) in expected.items())


def kohya_file(path, alpha_type=torch.float16):
    """What kohya's scripts update of one transformer and one text block, made by hand; -> tensors, {ours: ...}."""
    shapes = {  # (width_out, width_in), or of a convolution
        f"{ATTENTION}_attn1_to_q": (f"{OURS}.block.self_attention.to_q", (8, 8)),
        f"{ATTENTION}_attn2_to_out_0": (f"{OURS}.block.cross_attention.to_out", (8, 8)),
        f"{ATTENTION}_ff_net_0_proj": (f"{OURS}.block.feed_forward.proj_in", (64, 8)),
        f"{ATTENTION}_ff_net_2": (f"{OURS}.block.feed_forward.proj_out", (8, 32)),
        "lora_unet_down_blocks_0_attentions_0_proj_in": (f"{OURS}.proj_in", (8, 8, 1, 1)),
        "lora_unet_down_blocks_0_resnets_0_conv1": ("unet.encoder.levels.0.res.0.conv_1", (8, 8, 3, 3)),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": ("text.blocks.0.mlp_in", (16, 8)),
        "lora_te_text_model_encoder_layers_0_self_attn_v_proj": ("text.blocks.0.attention.to_v", (8, 8)),
    }
    tensors, expected = {}, {}
    for i, (name, (ours, (c_out, *c_in))) in enumerate(shapes.items()):
        rank, alpha = 2 + i % 2, 1.0 + i
        tensors[f"{name}.lora_down.weight"] = down = random(rank, *c_in, seed=i)
        tensors[f"{name}.lora_up.weight"] = up = random(c_out, rank, *(1 for _ in c_in[1:]), seed=i + 50)
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=alpha_type)
        expected[f"{ours}.weight"] = (up, down, alpha / rank)
    save_file(tensors, path)
    return tensors, expected


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_merging_a_lora_of_kohya_adds_scale_alpha_over_r_b_a(scale, base, tmp_path):
    """LoRA Eq. 3, in loops over the rank, in float64."""
    _, expected = kohya_file(tmp_path / "kohya.safetensors")
    import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "ours.safetensors")
    before, model = load_model(base).state_dict(), load_model(base)
    apply_lora(model, tmp_path / "ours.safetensors", scale)
    for name, weight in model.state_dict().items():
        update = torch.zeros(weight.shape, dtype=torch.float64)
        if name in expected:
            up, down, alpha_over_rank = expected.pop(name)
            for r in range(len(down)):
                column = up[:, r].double().reshape(-1, *(1 for _ in weight.shape[1:]))
                update += scale * alpha_over_rank * column * down[r].double()
            assert update.abs().max() > 1e-3
        torch.testing.assert_close(weight.double(), before[name].double() + update, rtol=1e-6, atol=1e-7)
    assert not expected


def test_an_imported_lora_says_that_its_base_is_unknown_and_where_it_is_from(base, tmp_path, capsys):
    kohya_file(tmp_path / "kohya.safetensors")
    import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "ours.safetensors")
    lora = load_lora(tmp_path / "ours.safetensors")
    assert lora.base_sha256 == UNKNOWN_BASE
    assert json.loads(lora.metadata["sources"])[0]["file"] == "kohya.safetensors"
    printed = capsys.readouterr().out
    assert "8 updates (2 of text, 6 of unet), rank 2 to 3, alpha / rank 0.5 to" in printed
    assert "does not say what it was trained on: apply it to any model of the size of micro" in printed


def test_without_alpha_the_update_is_b_a_as_both_programs_take_it(base, tmp_path):
    tensors, expected = kohya_file(tmp_path / "kohya.safetensors")
    save_file({name: value for name, value in tensors.items() if "alpha" not in name}, tmp_path / "kohya.safetensors")
    import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "ours.safetensors")
    assert {update.scale for update in load_lora(tmp_path / "ours.safetensors").updates} == {1.0}
    assert len(expected) == len(load_lora(tmp_path / "ours.safetensors").updates)


def test_a_linear_layer_written_as_a_convolution_and_the_other_way_round_is_the_same_map(base, tmp_path):
    tensors, _ = kohya_file(tmp_path / "kohya.safetensors")
    import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "one.safetensors")
    for name, value in tensors.items():
        if value.shape[2:] == (1, 1) and "conv1" not in name:
            tensors[name] = value.flatten(1)
        elif value.dim() == 2:
            tensors[name] = value[:, :, None, None]
    save_file(tensors, tmp_path / "kohya.safetensors")
    import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "other.safetensors")
    assert_same(load_lora(tmp_path / "other.safetensors").tensors, load_lora(tmp_path / "one.safetensors").tensors)


def diffusers_file(folder, settings):
    """A LoRA of two projections of rank 4, in the folder that pipe.load_lora_weights takes."""
    folder.mkdir()
    tensors = {}
    for part in ("unet.down_blocks.0.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1"):
        tensors[f"{part}.lora_A.weight"] = random(4, 8)
        tensors[f"{part}.lora_B.weight"] = random(8 if "unet" in part else 16, 4)
    metadata = {} if settings is None else {HEADER: json.dumps(settings)}
    write_safetensors(folder / "pytorch_lora_weights.safetensors", lazy_tensors(tensors), metadata)
    return folder


@pytest.mark.parametrize(
    ("settings", "alphas"),
    [
        (None, {"unet": 4.0, "text": 4.0}),
        ({"unet.lora_alpha": 8, "text_encoder.lora_alpha": 2}, {"unet": 8.0, "text": 2.0}),
        (
            {
                "unet.lora_alpha": 8,
                "unet.alpha_pattern": {"^down_blocks.0.attentions.0.proj_in": 3},
                "text_encoder.lora_alpha": 8,
                "text_encoder.alpha_pattern": {"mlp.fc1": 1},
            },
            {"unet": 3.0, "text": 1.0},
        ),
        (
            {"unet.lora_alpha": 8, "unet.use_rslora": True, "text_encoder.lora_alpha": 2},
            {"unet": 8 * math.sqrt(4), "text": 2.0},
        ),
    ],
)
def test_alpha_is_read_from_the_header_as_peft_reads_it(settings, alphas, base, tmp_path):
    import_lora(diffusers_file(tmp_path / "theirs", settings), base, tmp_path / "ours.safetensors")
    found = {update.module.split(".")[0]: update.alpha for update in load_lora(tmp_path / "ours.safetensors").updates}
    assert found == alphas


@pytest.mark.parametrize(
    "settings",
    [
        {"unet.lora_alpha": 8},
        {"unet.lora_alpha": "much", "text_encoder.lora_alpha": 2},
        {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn.*": 3}, "text_encoder.lora_alpha": 2},
        [1],
    ],
)
def test_a_header_that_cannot_be_used_is_refused(settings, base, tmp_path):
    with pytest.raises(ValueError, match=f"{HEADER} in its header cannot be used"):
        import_lora(diffusers_file(tmp_path / "theirs", settings), base, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


XL_KEY = "lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.mark.parametrize(
    ("surplus", "sentence"),
    [
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": ()}, "a LoRA of a Stable Diffusion XL model"),
        ({XL_KEY: (4, 2048)}, "a LoRA of a Stable Diffusion XL model"),
        ({XL_KEY: (4, 1024)}, r"a LoRA of a Stable Diffusion 2\.x model"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)}, "a LoRA of a Flux model"),
        ({"transformer.x.lora_A.weight": (4, 8)}, "a LoRA of a Stable Diffusion 3 or Flux model"),
        ({f"{ATTENTION}_attn1_to_q.dora_scale": (8, 1)}, "a DoRA"),
        ({f"{ATTENTION}_attn1_to_q.hada_w1_a": (8, 2)}, "a LoHa"),
        ({f"{ATTENTION}_attn1_to_q.lokr_w1": (2, 2)}, "a LoKr"),
        ({"lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": (2, 2, 3, 3)}, "a LoCon with a Tucker decomp"),
        ({"lora_unet_conv_norm_out.diff_b": (8,)}, "biases trained whole"),
        (
            {"lora_unet_conv_norm_out.w_norm": (8,)},
            r"norms trained whole \(1 tensors.*Merge it into a whole model",
        ),
        ({f"{ATTENTION}_attn1_to_q.on_input": ()}, "an IA3"),
        ({"lllite_unet_input_blocks_1_1_down.0.weight": (4, 8)}, "a ControlNet-LLLite"),
        (
            {"lora_unet_colour.alpha": (), "emb_params": (8,)},
            r"2 of 26 names belong to no layer of micro \(emb_params, l",
        ),
        ({"lora_unet_down_blocks_3_attentions_0_proj_in.alpha": ()}, "1 of 25 names belong to no layer of micro"),
        ({f"{ATTENTION}_attn1_to_k.lora_up.weight": (8, 2)}, "attn1_to_k.lora_up.weight lacks its other matrix"),
        ({f"{ATTENTION}_attn1_to_q.lora_up.weight": (8, 3)}, r"to_q.lora_up.weight is float32 \[8, 3\], not \[8, 2\]"),
        (
            {f"{ATTENTION}_attn1_to_q.lora_down.weight": (2, 9)},
            r"to_q.lora_down.weight is float32 \[2, 9\], not \[2, 8\]",
        ),
        ({f"{ATTENTION}_attn1_to_q.alpha": (2,)}, r"attn1_to_q.alpha is \[2\], not one number"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": ()}, "are the same tensor"),
    ],
)
def test_what_has_no_place_in_a_lora_of_ours_is_refused_by_name(surplus, sentence, base, tmp_path):
    tensors, _ = kohya_file(tmp_path / "kohya.safetensors")
    tensors |= {name: torch.ones(shape) for name, shape in surplus.items()}
    save_file(tensors, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match=sentence) as error:
        import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "ours.safetensors")
    assert str(error.value).startswith(f"{tmp_path / 'kohya.safetensors'}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours.safetensors").exists()


def test_embeddings_bundled_with_a_lora_are_left_out_with_a_note_of_their_words(base, tmp_path, capsys):
    tensors, expected = kohya_file(tmp_path / "kohya.safetensors")
    bundled = {"bundle_emb.cyst.string_to_param.*": random(2, 8), "bundle_emb.halo.emb_params": random(1, 8)}
    save_file(tensors | bundled, tmp_path / "kohya.safetensors")
    import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "ours.safetensors")
    note = "note: .*left out 2 bundled embeddings .cyst, halo.: in a prompt here these are plain words"
    assert re.search(note, capsys.readouterr().err)
    assert len(load_lora(tmp_path / "ours.safetensors").updates) == len(expected)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_an_alpha_that_is_no_scale_is_refused(alpha, base, tmp_path):
    tensors, _ = kohya_file(tmp_path / "kohya.safetensors")
    tensors[f"{ATTENTION}_attn1_to_q.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match=r"attn1_to_q\.lora_down\.weight has rank 2 and alpha"):
        import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "ours.safetensors")


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        (
            LoRAConfig(2, parts=("controlnet",)),
            "updates of the controlnet and .* trained whole .controlnet.hint_network",
        ),
        (LoRAConfig(2, full=("text.prompt",)), r"1 tensors trained whole \(text.prompt\)"),
    ],
)
def test_a_lora_that_has_no_place_in_their_names_is_not_exported(names, lora, sentence, micro, tmp_path):
    model = LatentDiffusion(micro)
    model.add_controlnet()
    model.add_prompt_tokens(2, generator())
    add_lora(model, lora, generator())
    save_lora(tmp_path / "ours.safetensors", model, lora, "random")
    with pytest.raises(ValueError, match=f"{sentence}.*which the names of {names} have no place for"):
        export_lora(tmp_path / "ours.safetensors", tmp_path / "out.safetensors", names)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_lora_of_ours_that_lacks_a_matrix_is_not_exported(micro, tmp_path):
    path = write_ours(tmp_path / "ours.safetensors", micro, LoRAConfig(2))
    lora = load_lora(path)
    name = f"{OURS}.block.self_attention.to_q.lora_up.weight"
    write_safetensors(path, lazy_tensors({n: t for n, t in lora.tensors.items() if n != name}), lora.metadata)
    with pytest.raises(ValueError, match=r"to_q\.lora_down\.weight is not one of two matrices of rank 2"):
        export_lora(path, tmp_path / "out.safetensors", "kohya")


def test_files_of_another_kind_are_refused_on_either_side(micro, base, tmp_path):
    ours = write_ours(tmp_path / "ours.safetensors", micro, LoRAConfig(2))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="a LoRA of ours already"):
        import_lora(ours, base, out)
    with pytest.raises(ValueError, match="belong to no layer of micro"):
        import_lora(base, base, out)
    with pytest.raises(ValueError, match=f"--base {ours}: not a model file of ours"):
        import_lora(ours, ours, out)
    with pytest.raises(ValueError, match="a whole model, not a LoRA"):
        export_lora(base, out, "kohya")
    kohya_file(out)
    with pytest.raises(ValueError, match=r"not a LoRA of ours.*import --lora .*out.safetensors --base MODEL"):
        export_lora(out, tmp_path / "other.safetensors", "kohya")
    with pytest.raises(ValueError, match=r"the file exists\. Add --overwrite"):
        import_lora(ours, base, out)


def test_numbers_too_large_for_the_asked_for_type_are_refused(micro, tmp_path):
    path = write_ours(tmp_path / "ours.safetensors", micro, LoRAConfig(2))
    lora = load_lora(path)
    lora.tensors[f"{OURS}.block.self_attention.to_q.lora_up.weight"][0, 0] = 1e6
    write_safetensors(path, lazy_tensors(lora.tensors), lora.metadata)
    with pytest.raises(ValueError, match=r"to_q.lora_up.weight has numbers too large for torch.float16"):
        export_lora(path, tmp_path / "out.safetensors", "kohya", "fp16")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_lora_of_sd15_does_not_go_into_a_smaller_model(base, tmp_path):
    path = write_ours(tmp_path / "ours.safetensors", SD15, LoRAConfig(4))
    export_lora(path, tmp_path / "kohya.safetensors", "kohya")
    with pytest.raises(ValueError, match=r"names belong to no layer of micro .*with --base a model of the size"):
        import_lora(tmp_path / "kohya.safetensors", base, tmp_path / "out.safetensors")


def call(*words: object) -> int:
    return run_command(lambda: main([str(word) for word in words]))


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_the_command_line_takes_a_lora_there_and_back(micro, base, tmp_path, capsys, names):
    ours = write_ours(tmp_path / "ours.safetensors", micro, LoRAConfig(2))
    theirs, back = tmp_path / "theirs.safetensors", tmp_path / "back.safetensors"
    assert call("export", ours, "--format", "lora", "--names", names, "--out", theirs) == 0
    assert call("import", "--lora", theirs, "--base", base, "--out", back) == 0
    first, again = load_lora(ours).tensors, load_lora(back).tensors
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("export", "OURS", "--format", "lora"), "belongs to --format lora"),
        (("export", "BASE", "--format", "compvis", "--names", "kohya"), "belongs to --format lora"),
        (("import", "--lora", "OURS"), "--embedding EMB together with --base MODEL"),
        (("import", "BASE", "--lora", "OURS", "--base", "BASE"), "give SRC, or --lora LORA"),
        (("import", "--lora", "OURS", "--base", "BASE", "--ema"), "--ema does nothing with --lora"),
    ],
)
def test_options_of_a_lora_that_do_not_fit_are_one_sentence(micro, base, tmp_path, capsys, words, sentence):
    files = {"OURS": write_ours(tmp_path / "ours.safetensors", micro, LoRAConfig(2)), "BASE": base}
    assert call(*(files.get(word, word) for word in words), "--out", tmp_path / "out.safetensors") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
