"""The rules: every source tensor is used once, every target is filled once, in every layout and at every size."""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_us.config import PRESETS, SD15, TINY
from tests.golden.converted import convert_state_dict, source_from_state_dict
from tests.golden.original import LAYOUTS, PREFIXES, shapes, tiny_compvis, to_diffusers, to_open_clip
from weights_convert.convert import fits, plan_source, target_shapes
from weights_convert.expansion import rules_for
from weights_convert.rules import COLUMNS, IGNORED, IGNORED_WITHOUT_EMA, Layout

POSITION_IDS = "text_model.embeddings.position_ids"
PARTS_OF = {  # what each list of names in sd15_layouts.json holds, and what of it is ignored
    "compvis_single_file": (
        {"vae", "text", "unet"},
        {f"cond_stage_model.transformer.{POSITION_IDS}"},
    ),
    "lllyasviel_controlnet": ({"controlnet"}, set()),
    "diffusers/unet": ({"unet"}, set()),
    "diffusers/vae": ({"vae"}, set()),
    "diffusers/text_encoder": ({"text"}, {POSITION_IDS}),
    "diffusers/controlnet": ({"controlnet"}, set()),
    "open_clip_text": ({"text"}, {"text_projection"}),
}
EVERY_NAMING = [(part, naming) for part, namings in COLUMNS.items() for naming in (*namings, "ours")]


def names_without_numbers(layout, size):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes(layout, size).items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def ours():
    return convert_state_dict(tiny_compvis(), TINY)


@pytest.mark.parametrize("size", ["tiny", "sd15"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_converter_uses_every_source_key_once_and_fills_every_target_key_once(layout, size):
    source = source_from_state_dict(names_without_numbers(layout, size))
    plan = plan_source(source, PRESETS[size])
    parts, ignored = PARTS_OF[layout]
    targets = {name for name in target_shapes(PRESETS[size]) if name.split(".")[0] in parts}
    assert Counter(piece.target for piece in plan.pieces) == Counter(targets)
    uses = Counter(piece.key for piece in plan.pieces)
    assert all(uses[piece.key] == piece.count for piece in plan.pieces)  # once, or once for each of its equal parts
    assert uses.keys() | ignored == source.entries.keys()
    assert plan.ignored.keys() == ignored


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("part", "naming"), EVERY_NAMING)
def test_the_rules_are_one_to_one(part, naming, preset):
    targets = target_shapes(PRESETS[preset])
    for ema in (False, True):
        rules = rules_for(PRESETS[preset], Layout(part, naming, "prefix.", ema), targets)
        assert max(Counter(rule.source for rule in rules).values()) == 1
        filled = Counter(target for rule in rules for target in rule.targets)
        assert filled == Counter(name for name in targets if name.startswith(f"{part}."))


@pytest.mark.parametrize("part", ["unet", "controlnet", "vae", "text"])
def test_the_test_suites_own_way_to_diffusers_gives_the_real_names_and_shapes(part):
    sd15 = names_without_numbers("compvis_single_file", "sd15") | names_without_numbers("lllyasviel_controlnet", "sd15")
    component = "text_encoder" if part == "text" else part
    found = {name: list(value.shape) for name, value in to_diffusers(sd15, part).items()}
    assert found == LAYOUTS[f"diffusers/{component}"]


@pytest.mark.parametrize("part", ["unet", "controlnet", "vae", "text"])
def test_diffusers_names_give_bit_for_bit_the_tensors_of_compvis_names(part, ours):
    expected = {name: value for name, value in ours.items() if name.startswith(f"{part}.")}
    assert equal(convert_state_dict(to_diffusers(tiny_compvis(), part), TINY), expected)
    if part == "vae":
        assert equal(convert_state_dict(to_diffusers(tiny_compvis(), part, old=True), TINY), expected)


def test_text_names_without_text_model_give_the_same_tensors(ours):
    expected = {name: value for name, value in ours.items() if name.startswith("text.")}
    text = tiny_compvis("text")
    for prefix in ("cond_stage_model.transformer.", ""):
        renamed = {key.replace(PREFIXES["text"], prefix): value for key, value in text.items()}
        assert equal(convert_state_dict(renamed, TINY), expected)


def test_an_open_clip_tower_is_split_into_the_same_tensors(ours):
    expected = {name: value for name, value in ours.items() if name.startswith("text.")}
    tower = to_open_clip(tiny_compvis("text"))
    assert {"text_projection", "logit_scale", "attn_mask", "visual.proj"} < tower.keys()
    assert equal(convert_state_dict(tower, TINY), expected)


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_a_controlnet_is_found_with_and_without_its_prefix(prefix, ours):
    control = {key.replace("control_model.", prefix): value for key, value in tiny_compvis("controlnet").items()}
    expected = {name: value for name, value in ours.items() if name.startswith("controlnet.")}
    assert equal(convert_state_dict(control, TINY), expected)


def test_our_own_names_stay_as_they_are(ours):
    assert equal(convert_state_dict(ours, TINY), ours)


def test_a_learned_prompt_of_a_model_file_of_ours_stays_as_it_is(ours):
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, prompt_tokens=2))
    prompted = ours | {"text.prompt": torch.ones(2, TINY.text.width)}
    assert equal(convert_state_dict(prompted, config), prompted)


def test_the_moving_average_takes_the_place_of_the_unet_when_asked_for(ours):
    model = tiny_compvis("vae", "text", "unet")
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value + 1
        for key, value in model.items()
        if key.startswith("model.")
    }
    assert "model_ema.diffusion_modelinput_blocks00weight" in ema
    whole = model | ema | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    without, with_ema = convert_state_dict(whole, TINY), convert_state_dict(whole, TINY, ema=True)
    for name, value in without.items():
        assert torch.equal(value, ours[name])
        assert torch.equal(with_ema[name], value + 1 if name.startswith("unet.") else value)
    del whole["model_ema.diffusion_modelout2bias"]
    with pytest.raises(ValueError, match=r"1 missing .model_ema.diffusion_modelout2bias"):
        convert_state_dict(whole, TINY, ema=True)
    with pytest.raises(ValueError, match=r"1 unexpected .model_ema.diffusion_modelextra"):
        convert_state_dict(model | ema | {"model_ema.diffusion_modelextra": torch.zeros(1)}, TINY, ema=True)
    with pytest.raises(ValueError, match=r"no moving average .*Leave --ema out"):
        convert_state_dict(model, TINY, ema=True)


def test_only_the_listed_tensors_are_ignored_each_with_its_reason():
    names = ["betas", "alphas_cumprod_prev", "sqrt_recip_alphas_cumprod", "log_one_minus_alphas_cumprod", "logvar"]
    names += ["posterior_mean_coef1", "lvlb_weights", "model_ema.decay", "first_stage_model.loss.logvar"]
    names += ["cond_stage_model.transformer.vision_model.post_layernorm.weight"]
    surplus = {name: torch.zeros(2) for name in names}
    plan = plan_source(source_from_state_dict(tiny_compvis("vae", "text", "unet") | surplus), TINY)
    assert plan.ignored.keys() == surplus.keys() | {f"{PREFIXES['text']}embeddings.position_ids"}
    assert set(plan.ignored.values()) <= set((IGNORED | IGNORED_WITHOUT_EMA).values())
    for name in ("beta", "model.betas", "first_stage_model.los", "text_projection", "logit_scale", "visual.proj"):
        with pytest.raises(ValueError, match=f"1 unexpected .{name}"):
            convert_state_dict(tiny_compvis("unet") | {name: torch.zeros(2)}, TINY)


def test_missing_unexpected_and_misshaped_tensors_are_counted_and_the_first_are_named():
    model = tiny_compvis("unet")
    for key in list(model)[:5]:
        model[f"{key}.old"] = model.pop(key)
    key = f"{PREFIXES['unet']}out.2.bias"
    model[key] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"5 missing \(.*, \.\.\.\); 5 unexpected \(.*\); 1 misshaped") as error:
        convert_state_dict(model, TINY)
    assert f"{key} is float32 [5], not [4]" in str(error.value)
    assert "--preset" in str(error.value)


def test_whole_numbers_are_not_taken_for_weights():
    key = f"{PREFIXES['unet']}out.2.bias"
    with pytest.raises(ValueError, match=r"1 misshaped .*int8 \[4\]"):
        convert_state_dict(tiny_compvis("unet") | {key: torch.zeros(4, dtype=torch.int8)}, TINY)


def test_any_one_tensor_that_is_missing_is_named():
    model = tiny_compvis("unet", "vae", "text")
    for key in list(model)[:: len(model) // 12]:
        if not key.endswith("position_ids"):
            with pytest.raises(ValueError, match=f"1 missing .{key}"):
                convert_state_dict({name: value for name, value in model.items() if name != key}, TINY)


@given(st.lists(st.integers(1, 4), max_size=4), st.lists(st.integers(1, 4), max_size=4))
def test_shapes_fit_only_if_equal_or_a_square_matrix_and_its_1x1_convolution(a, b):
    def matrix(shape):
        return shape[:2] if len(shape) == 4 and shape[0] == shape[1] and shape[2:] == [1, 1] else shape

    assert fits(tuple(a), tuple(b)) == (matrix(a) == matrix(b))
    assert fits(tuple(a), tuple(a))


def test_targets_are_the_tensors_of_the_model_and_take_no_memory():
    found = target_shapes(SD15)
    assert len(found) == 686 + 248 + 196 + 340
    assert found["unet.decoder.conv_out.weight"] == (4, 320, 3, 3)
