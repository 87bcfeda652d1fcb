"""LoRA files: exact round trips, merged again with any scale, and one sentence for every file that does not fit."""

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch

import ldm_us
from ldm_us.config import config_to_dict
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.checkpoint import lazy_tensors, load_model, save_model, write_safetensors
from ldm_us.files.lora_file import apply_lora, load_lora, save_lora
from ldm_us.networks.lora import LoRAConfig, Update, add_lora, lora_shapes, lora_state, merge_lora

CONTROL = LoRAConfig(rank=2, parts=("controlnet",))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def base(micro):
    torch.manual_seed(0)
    return LatentDiffusion(micro).eval().requires_grad_(False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lora.safetensors"


def train_lora(base, config, path, seed=0):
    """A copy of `base` with a LoRA that is no longer zero, saved; the file is what is tested."""
    model = copy.deepcopy(base)
    if "controlnet" in config.parts:
        model.add_controlnet()
    if config.full:
        model.add_prompt_tokens(3, generator(9))
    for parameter in add_lora(model, config, generator(seed)).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator(seed + 1))
    save_lora(path, model.eval(), config, "ab" * 32, {"steps": "70"})
    return model


def image(model):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:9, 4:9] = 1
    masks = None if model.controlnet is None else mask
    return generate(model, ["a benign breast"], masks=masks, sampling=Sampling(steps=2, guidance=2.0))


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def close(state, other, atol=1e-6):
    return state.keys() == other.keys() and all((state[n] - other[n]).abs().max() <= atol for n in state)


def test_a_lora_comes_back_bit_by_bit_with_its_settings_and_metadata(base, path):
    config = LoRAConfig(rank=3, alpha=1.5, parts=("unet", "text"), targets=("q", "cross.v"))
    model = train_lora(base, config, path)
    lora = load_lora(path)
    assert lora.config == config
    assert same(lora.tensors, lora_state(model, config))
    assert lora.base_sha256 == "ab" * 32
    assert (lora.metadata["steps"], lora.metadata["ldm_us"]) == ("70", ldm_us.__version__)


def test_the_file_holds_the_updates_alone_and_other_programs_read_it(base, path):
    train_lora(base, LoRAConfig(rank=2), path)
    names = safetensors.torch.load_file(path).keys()
    assert all(name.endswith((".lora_down.weight", ".lora_up.weight")) for name in names)
    start = "unet.decoder.levels.1.transformers.0.block.self_attention.to_out"
    assert {f"{start}.lora_down.weight", f"{start}.lora_up.weight"} <= names


def test_applied_to_its_base_it_gives_the_merged_model(base, path):
    """LoRA Eq. 3: (W_0 + B A) x."""
    model = train_lora(base, LoRAConfig(rank=2, parts=("unet", "text")), path)
    apply_lora(base, path)
    torch.testing.assert_close(image(base), image(model), rtol=1e-4, atol=1e-5)
    merge_lora(model)
    assert same(base.state_dict(), model.state_dict())


def test_the_scale_weighs_the_update_and_its_negative_takes_it_out_again(base, path):
    config = LoRAConfig(rank=2, alpha=3.0)
    train_lora(base, config, path)
    before = copy.deepcopy(base.state_dict())
    apply_lora(base, path, scale=0.5)
    tensors = load_lora(path).tensors
    for name in before:
        update = 0.0
        if (module := name.removesuffix(".weight")) + ".lora_up.weight" in tensors:
            update = 0.5 * 3.0 / 2 * tensors[f"{module}.lora_up.weight"] @ tensors[f"{module}.lora_down.weight"]
        torch.testing.assert_close(base.state_dict()[name], before[name] + update)
    apply_lora(base, path, scale=-0.5)
    assert close(base.state_dict(), before)


def test_several_loras_add_up_in_any_order_each_with_its_scale(base, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        train_lora(base, LoRAConfig(rank=i + 1, parts=(("unet", "text")[i % 2],)), path, seed=i)
    forwards, backwards = copy.deepcopy(base), copy.deepcopy(base)
    scaled = list(zip(paths, (1.0, 0.3, -0.4), strict=True))
    for path, scale in scaled:
        apply_lora(forwards, path, scale)
    for path, scale in reversed(scaled):
        apply_lora(backwards, path, scale)
    assert close(forwards.state_dict(), backwards.state_dict())
    assert not close(forwards.state_dict(), base.state_dict(), atol=1e-2)


def test_a_controlnet_trained_with_a_lora_comes_back_whole_on_a_base_without_one(base, path):
    model = train_lora(base, CONTROL, path)
    state = torch.get_rng_state()
    apply_lora(base, path)
    assert torch.equal(torch.get_rng_state(), state)
    merge_lora(model)
    assert same(base.state_dict(), model.state_dict())
    assert torch.equal(image(base), image(model))
    assert not any(p.requires_grad for p in base.parameters())
    assert path.stat().st_size < 0.8 * sum(p.nbytes for p in base.controlnet.parameters())


def test_a_learned_prompt_comes_back_with_or_without_updates(base, path):
    for config in (LoRAConfig(parts=(), full=("text.prompt",)), LoRAConfig(rank=2, full=("text.prompt",))):
        model, applied = train_lora(base, config, path), copy.deepcopy(base)
        apply_lora(applied, path)
        assert applied.config.text.prompt_tokens == 3
        merge_lora(model)
        assert same(applied.state_dict(), model.state_dict())
        apply_lora(applied, path)  # in the place of the one it has


def test_a_model_with_a_lora_applied_is_saved_and_loaded_as_any_other(base, path, tmp_path):
    train_lora(base, CONTROL, path)
    apply_lora(base, path)
    save_model(base, tmp_path / "model.safetensors")
    assert same(load_model(tmp_path / "model.safetensors").state_dict(), base.state_dict())


def test_a_lora_applies_to_weights_of_half_size_and_keeps_their_type(base, path):
    train_lora(base, CONTROL, path)
    base.to(torch.bfloat16)
    apply_lora(base, path)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert image(base).isfinite().all()


def write_modules(path, model, *updates):
    """A LoRA of single modules with random numbers."""
    config = LoRAConfig(parts=(), modules=updates)
    tensors = {
        name: torch.randn(shape, generator=generator(i))
        for i, (name, shape) in enumerate(lora_shapes(model, config).items())
    }
    metadata = {"lora": json.dumps(dataclasses.asdict(config)), "base_sha256": "random"}
    write_safetensors(path, lazy_tensors(tensors), metadata)
    return config, tensors


def test_each_single_module_gets_an_update_of_its_own_rank_and_alpha(base, path):
    linear, conv = "unet.middle.transformer.block.feed_forward.proj_in", "unet.encoder.levels.0.res.0.conv_1"
    config, tensors = write_modules(path, base, Update(linear, 3, 6.0), Update(conv, 2, 1.0))
    assert load_lora(path).config == config
    before = copy.deepcopy(base.state_dict())
    apply_lora(base, path, scale=0.5)
    for name, value in base.state_dict().items():
        update = torch.zeros_like(value)
        if name == f"{linear}.weight":
            update = 0.5 * 2.0 * tensors[f"{linear}.lora_up.weight"] @ tensors[f"{linear}.lora_down.weight"]
        if name == f"{conv}.weight":
            up, down = (tensors[f"{conv}.{matrix}.weight"] for matrix in ("lora_up", "lora_down"))
            update = 0.5 * 0.5 * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
        torch.testing.assert_close(value, before[name] + update)


def test_a_single_module_that_the_model_does_not_have_is_refused(base, path, micro):
    deeper = LatentDiffusion(dataclasses.replace(micro, unet=dataclasses.replace(micro.unet, attention=(True, True))))
    module = "unet.encoder.levels.1.transformers.0.proj_in"
    write_modules(path, deeper, Update(module, 2, 2.0))
    assert f"LoRA on {module}: of 1 such modules this model has no layer" in refusal(path, base)


def refusal(path, model=None):
    """The one sentence with which a file is refused; the model stays as it was."""
    before = None if model is None else copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=path.name) as error:
        load_lora(path) if model is None else apply_lora(model, path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert model is None or same(model.state_dict(), before)
    return str(error.value)


def test_missing_broken_and_foreign_files_are_refused(base, path):
    importing = f"import --lora {path} --base MODEL"  # for folders of PEFT's, pickles and other programs' names
    assert "no such file" in refusal(path)
    assert importing in refusal(path)
    path.write_bytes(b"nothing")
    assert "not a whole safetensors file" in refusal(path)
    assert importing in refusal(path)
    safetensors.torch.save_file({"lora_unet_down.lora_down.weight": torch.zeros(1)}, path)
    assert "a safetensors file without settings of a LoRA, not a LoRA of ours" in refusal(path)
    save_model(base, path)
    assert "a whole model, not a LoRA" in refusal(path)
    train_lora(base, CONTROL, path)
    path.write_bytes(path.read_bytes()[:-5])
    assert "not a whole safetensors file" in refusal(path)


def test_numbers_that_are_none_are_refused_by_the_name_of_the_tensor(base, path):
    train_lora(base, LoRAConfig(rank=2), path)
    name = "unet.middle.transformer.block.self_attention.to_q.lora_up.weight"
    lora = load_lora(path)
    lora.tensors[name][0, 0] = float("nan")
    write_safetensors(path, lazy_tensors(lora.tensors), lora.metadata)
    assert f"{name}: 1 of its 32 values is NaN or infinite" in refusal(path)


def test_a_lora_is_refused_where_a_model_is_expected(base, path):
    train_lora(base, CONTROL, path)
    with pytest.raises(ValueError, match="a LoRA, not a whole model"):
        load_model(path)


def rewrite(path, change):
    """Change the tensors of a LoRA file."""
    lora = load_lora(path)
    change(lora.tensors)
    write_safetensors(path, lazy_tensors(lora.tensors), lora.metadata)


def test_tensors_missing_unknown_and_of_another_shape_are_refused_and_named(base, path):
    train_lora(base, LoRAConfig(rank=2), path)
    start = "unet.encoder.levels.0.transformers.0.block.self_attention"

    def change(tensors):
        del tensors[f"{start}.to_q.lora_up.weight"]
        tensors["unet.colour.lora_up.weight"] = torch.zeros(1)
        tensors[f"{start}.to_k.lora_down.weight"] = torch.zeros(3, 8)

    rewrite(path, change)
    message = refusal(path, base)
    assert f"1 tensors missing ({start}.to_q.lora_up.weight)" in message
    assert "1 tensors that the model has no place for (unet.colour.lora_up.weight)" in message
    assert f"1 tensors of another shape ({start}.to_k.lora_down.weight)" in message
    assert "does not fit micro: apply it to the model it was trained on" in message


@pytest.mark.parametrize("config", [LoRAConfig(rank=2, parts=("unet", "text")), CONTROL])
def test_a_lora_of_another_size_of_model_is_refused(base, path, micro, config):
    train_lora(base, config, path)
    wider = dataclasses.replace(micro, unet=dataclasses.replace(micro.unet, width=16))
    other = LatentDiffusion(wider)
    assert "of another shape" in refusal(path, other)
    assert other.controlnet is None


@pytest.mark.parametrize("shape", [(), (3,), (0, 8), (3, 9), (90, 8), (3, 8, 1)])
def test_a_learned_prompt_that_does_not_fit_is_refused(base, path, shape):
    train_lora(base, LoRAConfig(parts=(), full=("text.prompt",)), path)
    rewrite(path, lambda tensors: tensors.update({"text.prompt": torch.zeros(shape)}))
    refusal(path, base)
    assert base.text.prompt is None


@pytest.mark.parametrize(
    "settings",
    [
        *("", "nonsense", "null", "5", "[]"),
        *(
            json.dumps(dataclasses.asdict(LoRAConfig()) | wrong)
            for wrong in (
                {"rank": "a"},
                {"rank": 0},
                {"colour": 1},
                {"parts": ["vae"]},
                {"parts": 5},
                {"full": [1]},
                {"modules": [["unet.a", 2]]},
            )
        ),
    ],
)
def test_settings_that_cannot_be_read_are_refused(base, path, settings):
    train_lora(base, LoRAConfig(rank=2), path)
    lora = load_lora(path)
    write_safetensors(path, lazy_tensors(lora.tensors), lora.metadata | {"lora": settings})
    assert "settings" in refusal(path)


def test_a_full_config_of_a_model_is_not_taken_for_settings(base, path):
    metadata = {"lora": json.dumps(config_to_dict(base.config)), "base_sha256": "random"}
    write_safetensors(path, [], metadata)
    assert "its LoRA settings cannot be read" in refusal(path)
