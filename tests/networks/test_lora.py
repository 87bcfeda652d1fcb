"""LoRA: the update of the paper, nothing else trained, and the way back to plain weights."""

import copy

import pytest
import torch
from torch import nn

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.checkpoint import save_model
from ldm_us.networks.controlnet import ControlNet
from ldm_us.networks.lora import (
    PROJECTIONS,
    LoRAConfig,
    LoRALinear,
    Update,
    add_lora,
    add_update,
    has_lora,
    merge_lora,
    projections,
    remove_lora,
)
from ldm_us.networks.recompute import set_recompute

ALL_PARTS = LoRAConfig(rank=2, alpha=3.0, parts=("unet", "text", "controlnet"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(micro):
    torch.manual_seed(0)
    made = LatentDiffusion(micro).eval()
    made.add_controlnet()
    return made


def trained(model, config=ALL_PARTS, seed=0):
    """A LoRA whose matrices are no longer zero, as after training."""
    parameters = add_lora(model, config, generator(seed))
    for parameter in parameters.values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator(seed + 1))
    return parameters


def predict(model):
    """eps_hat of fixed inputs, through text encoder, ControlNet and UNet."""
    z_t, hint = torch.randn(2, 4, 4, 4, generator=generator(5)), torch.rand(2, 3, 16, 16, generator=generator(6))
    t, context = torch.tensor([37, 961]), model.encode_prompts(["a benign breast", ""])
    control = model.controlnet(z_t, t, context, hint) if model.controlnet is not None else None
    return model.unet(z_t, t, context, control)


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_w_x_plus_alpha_over_r_b_a_x(bias):
    """LoRA Eq. 3, against loops in float64."""
    torch.manual_seed(0)
    linear = nn.Linear(5, 4, bias=bias)
    layer = LoRALinear(linear, LoRAConfig(rank=2, alpha=6.0), generator())
    nn.init.normal_(layer.lora_up.weight)
    x = torch.randn(3, 5)
    w, a, b = (p.tolist() for p in (linear.weight, layer.lora_down.weight, layer.lora_up.weight))
    constant = linear.bias.tolist() if bias else [0.0] * 4
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for n in range(3):
        for i in range(4):
            total = constant[i] + sum(w[i][j] * float(x[n, j]) for j in range(5))
            total += 6.0 / 2 * sum(b[i][k] * sum(a[k][j] * float(x[n, j]) for j in range(5)) for k in range(2))
            expected[n, i] = total
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-6, atol=1e-6)


def test_a_fresh_lora_changes_no_output_bit(model):
    before = predict(model)
    add_lora(model, ALL_PARTS, generator())
    assert torch.equal(predict(model), before)


def test_a_merged_update_has_exactly_the_rank_of_the_lora(model):
    """LoRA Eq. 3: B A with inner dimension r."""
    config = LoRAConfig(rank=3)
    before = {name: linear.weight.detach().clone() for name, linear in projections(model, config)}
    trained(model, config)
    merge_lora(model)
    assert len(before) > 20
    for name, linear in projections(model, config):
        singular = torch.linalg.svdvals((linear.weight - before[name]).double())
        assert singular[2] > 1e-3
        assert singular[3:].max() < 1e-6


def test_merging_keeps_the_output_and_gives_the_module_structure_of_before(model):
    structure, names = repr(model), list(model.state_dict())
    trained(model)
    expected = predict(model)
    assert not torch.equal(expected, predict(_removed(model)))
    merge_lora(model)
    torch.testing.assert_close(predict(model), expected, rtol=1e-5, atol=1e-6)
    assert (repr(model), list(model.state_dict())) == (structure, names)
    assert not has_lora(model)


def _removed(model):
    other = copy.deepcopy(model)
    remove_lora(other)
    return other


def test_removing_gives_every_weight_back_bit_for_bit(model):
    structure = repr(model)
    before = copy.deepcopy(model.state_dict())
    trained(model, LoRAConfig(rank=2, parts=("unet", "text")))
    remove_lora(model)
    assert same(model.state_dict(), before)
    assert repr(model) == structure


@pytest.mark.parametrize("scale", [0.7, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_update_merged_and_taken_out_again_leaves_two_roundings_and_no_more(dtype, scale):
    weight = torch.randn(40, 30, generator=generator()).to(dtype)
    down, up = torch.randn(4, 30, generator=generator(1)), torch.randn(40, 4, generator=generator(2))
    merged = weight.clone()
    add_update(merged, down, up, scale)
    assert (merged - weight).abs().max() > 0.1
    add_update(merged, down, up, -scale)
    left, update = (merged.double() - weight.double()).abs(), (scale * (up @ down)).double().abs()
    step = torch.finfo(dtype).eps
    bound = step / 2 * (2 * weight.double().abs() + update)
    assert (left <= bound * (1 + step)).all()  # the second rounding is of a weight that the first has moved
    assert left.max() > 0, "not exact, so a copy of the weights is what gives the same bits"


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_update_of_a_convolution_is_a_convolution_to_rank_r_and_one_of_1_x_1_behind_it(kernel):
    """LoRA Eq. 3, of the maps instead of the matrices."""
    layer = nn.Conv2d(5, 7, kernel, padding=kernel // 2)
    x = torch.randn(2, 5, 6, 6, generator=generator())
    down = 0.3 * torch.randn(3, 5, kernel, kernel, generator=generator(1))
    up = 0.3 * torch.randn(7, 3, 1, 1, generator=generator(2))
    beside = nn.functional.conv2d(nn.functional.conv2d(x, down, padding=kernel // 2), up)
    expected = layer(x) + 0.7 * beside
    add_update(layer.weight, down, up, 0.7)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_only_the_updates_get_a_gradient_and_every_one_does(model):
    parameters = trained(model, LoRAConfig(rank=2, parts=("unet", "text")))
    predict(model).square().mean().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == parameters.keys()
    assert all(p.grad.any() for p in parameters.values())
    assert {name.rsplit(".", 2)[1] for name in parameters} == {"lora_down", "lora_up"}
    assert all(p is dict(model.named_parameters())[name] for name, p in parameters.items())


def test_of_a_controlnet_the_copy_gets_updates_and_the_rest_is_trained_whole(model):
    parameters = add_lora(model, LoRAConfig(parts=("controlnet",), rank=2), generator())
    updates = {name for name in parameters if ".lora_" in name}
    assert all(name.startswith(("controlnet.encoder.", "controlnet.middle.")) for name in updates)
    prefixes = ("controlnet.hint_network.", "controlnet.zero_conv")
    assert parameters.keys() - updates == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}
    predict(model).square().mean().backward()
    assert model.controlnet.zero_conv_middle.weight.grad.any()
    assert {name for name, p in model.named_parameters() if p.grad is not None} <= parameters.keys()


def test_what_is_named_full_is_trained_beside_the_updates_or_alone(model):
    model.add_prompt_tokens(2, generator())
    alone = LoRAConfig(parts=(), full=("text.prompt",))
    assert add_lora(model, alone, generator()).keys() == {"text.prompt"}
    both = add_lora(model, LoRAConfig(parts=("unet",), rank=2, full=("text.prompt",)), generator())
    assert {"text.prompt"} < both.keys()


@pytest.mark.parametrize(
    ("part", "targets", "expected"),
    [
        ("unet", ("q",), {"self_attention.to_q", "cross_attention.to_q"}),
        ("unet", ("cross.k", "cross.v"), {"cross_attention.to_k", "cross_attention.to_v"}),
        ("unet", ("self.out", "v"), {"self_attention.to_out", "self_attention.to_v", "cross_attention.to_v"}),
        ("unet", PROJECTIONS, {f"{kind}_attention.to_{p}" for kind in ("self", "cross") for p in PROJECTIONS}),
        ("text", ("self.q", "out"), {"attention.to_q", "attention.to_out"}),
        ("controlnet", ("cross.q",), {"cross_attention.to_q"}),
    ],
)
def test_any_subset_of_projections_of_any_part_can_be_chosen(model, part, targets, expected):
    config = LoRAConfig(parts=(part,), targets=targets, rank=2)
    chosen = [name for name, _ in projections(model, config)]
    add_lora(model, config, generator())
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert wrapped == chosen
    assert {".".join(name.rsplit(".", 2)[1:]) for name in chosen} == expected
    assert all(name.startswith(f"{part}.") for name in chosen)


def test_names_are_those_of_our_modules(model):
    names = add_lora(model, LoRAConfig(rank=2), generator()).keys()
    start = "unet.encoder.levels.0.transformers.0.block.cross_attention.to_q"
    assert {f"{start}.lora_down.weight", f"{start}.lora_up.weight"} <= names
    assert f"{start}.weight" in model.state_dict(), "the weight keeps its name"


def test_initial_values_come_from_the_generator_alone(model):
    state = torch.get_rng_state()
    first, second, other = (add_lora(copy.deepcopy(model), ALL_PARTS, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)
    assert not same(first, other)


def test_a_starts_as_a_gaussian_that_keeps_the_size_of_its_input_and_b_at_zero():
    layer = LoRALinear(nn.Linear(400, 300), LoRAConfig(rank=200), generator())
    assert not layer.lora_up.weight.any()
    projected = layer.lora_down(torch.randn(100, 400, generator=generator(1)))
    assert abs(float(projected.detach().std()) - 1) < 0.05


def test_under_bfloat16_the_gradients_of_the_updates_are_finite_float32(model):
    parameters = trained(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = predict(model).float().square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in parameters.values())


def test_a_model_in_bfloat16_gets_updates_in_bfloat16(model):
    model.to(torch.bfloat16)
    assert {p.dtype for p in add_lora(model, ALL_PARTS, generator()).values()} == {torch.bfloat16}
    assert generate(model, ["a breast"], sampling=Sampling(steps=2)).isfinite().all()


def test_a_copy_of_a_model_with_a_lora_is_independent_and_equal(model):
    trained(model)
    other = copy.deepcopy(model)
    assert torch.equal(predict(other), predict(model))
    merge_lora(other)
    assert has_lora(model)


def test_updates_get_the_same_gradients_where_activations_are_computed_again(model):
    parameters = trained(model, LoRAConfig(rank=2))
    other = copy.deepcopy(model)
    set_recompute(other.unet, True)
    for module in (model, other):
        predict(module).square().mean().backward()
    for name, parameter in parameters.items():
        found = other.get_parameter(name).grad
        assert (found - parameter.grad).norm() <= 1e-6 * parameter.grad.norm(), name


def test_a_second_lora_is_refused_until_the_first_is_merged(model):
    trained(model)
    with pytest.raises(ValueError, match="has a LoRA already: merge_lora or remove_lora first"):
        add_lora(model, ALL_PARTS, generator())
    merge_lora(model)
    add_lora(model, ALL_PARTS, generator())


def test_a_controlnet_does_not_copy_a_unet_with_a_lora(model):
    trained(model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="LoRA that is not merged: merge_lora it before a ControlNet copies it"):
        ControlNet.from_unet(model.unet)


def test_a_model_with_a_lora_is_not_written_as_a_model_file(model, tmp_path):
    trained(model)
    with pytest.raises(ValueError, match=r"model\.safetensors: not written, for the model has a LoRA of \d+ matrices"):
        save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rank": 0}, "LoRA rank 0, alpha 8.0: both must be above 0"),
        ({"alpha": 0.0}, "both must be above 0"),
        ({"alpha": float("nan")}, "both must be above 0"),
        ({"parts": ("vae",)}, "LoRA parts vae: use each of unet, text, controlnet"),
        ({"targets": ("q", "q")}, "LoRA targets q, q: use each of q, k, v, out, self.q"),
        ({"targets": ("mlp",)}, "LoRA targets mlp"),
        ({"parts": ()}, "trains nothing"),
        ({"targets": ()}, "trains nothing"),
        ({"full": ("",)}, "name parameters or modules"),
        ({"modules": (Update("unet.a", 2, 1.0),)}, "has no parts and trains nothing whole"),
        ({"parts": (), "modules": (Update("unet.a", 2, 1.0),) * 2}, "one of them is there twice"),
        ({"parts": (), "modules": (Update("vae.a", 2, 1.0),)}, r"LoRA on vae\.a: single modules are those of unet and"),
        ({"parts": (), "modules": (Update("unet.a", 0, 1.0),)}, r"rank 0, alpha 1\.0 of unet\.a: both must be above 0"),
        ({"parts": (), "modules": (Update("unet.a", 2, -1.0),)}, "both must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoRAConfig(**values)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LoRAConfig(rank=9), r"LoRA rank 9: unet\.\S*to_q has rank 8"),
        (LoRAConfig(rank=1, parts=("controlnet",)), "LoRA on controlnet: this model has none"),
        (LoRAConfig(rank=1, parts=("text",), targets=("cross.q",)), r"LoRA on text: it has no projection cross\.q"),
        (LoRAConfig(parts=(), modules=(Update("unet.time.linear_1", 2, 2.0),)), "can be applied, not trained"),
        (LoRAConfig(rank=1, full=("text.prompt",)), r"LoRA with text\.prompt trained whole: this model has none"),
    ],
)
def test_a_lora_that_the_model_cannot_have_is_refused_and_changes_nothing(model, config, sentence):
    model.controlnet = None
    before = repr(model)
    with pytest.raises(ValueError, match=sentence):
        add_lora(model, config, generator())
    assert repr(model) == before
    assert all(p.requires_grad for p in model.parameters())
