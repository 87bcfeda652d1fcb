"""Model files: exact round trips, whole files only, and one sentence for every file that is not ours."""

import errno
import json
import os
import subprocess
import sys
import weakref

import pytest
import safetensors.torch
import torch

import ldm_us
from ldm_us.config import ControlConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig, config_to_dict
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.files.checkpoint import (
    LazyTensor,
    load_model,
    load_part,
    model_metadata,
    read_metadata,
    save_model,
    write_safetensors,
    write_state_dict,
)
from ldm_us.files.safetensors_header import read_tensors

SMALL = ModelConfig(
    name="small",
    image_size=8,
    vae=VAEConfig(width=8, multipliers=(1, 2), res_blocks=1, groups=4),
    text=TextConfig(vocabulary=49408, width=4, heads=2, layers=1, mlp_width=8),
    unet=UNetConfig(width=8, multipliers=(1,), attention=(True,), res_blocks=1, heads=2, context_width=4, groups=4),
    control=ControlConfig(hint_channels=(4, 8)),
)


@pytest.fixture(scope="module", params=["plain", "controlnet"])
def model(request):
    torch.manual_seed(0)
    made = LatentDiffusion(SMALL).eval()
    if request.param == "controlnet":
        made.add_controlnet()
    return made


@pytest.fixture
def state():
    torch.manual_seed(0)
    return dict(LatentDiffusion(SMALL).state_dict())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def refusal(path):
    """The one sentence with which load_model refuses a file."""
    with pytest.raises(ValueError, match=path.name) as error:
        load_model(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_comes_back_bit_by_bit(model, path):
    save_model(model, path)
    loaded = load_model(path)
    assert loaded.config == SMALL
    assert (loaded.controlnet is None) == (model.controlnet is None)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loaded_model_makes_the_same_image(model, path):
    save_model(model, path)
    loaded = load_model(path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    images = [generate(m, ["a breast"], sampling=Sampling("ddpm", 2)) for m in (model, loaded)]
    assert torch.equal(*images)


def test_a_latent_scale_that_was_set_is_saved(path, state):
    made = LatentDiffusion(SMALL)
    made.set_latent_scale(0.5)
    save_model(made, path)
    assert load_model(path).vae.scale == 0.5


def test_the_safetensors_library_reads_the_file(model, path):
    save_model(model, path)
    theirs, ours = safetensors.torch.load_file(path), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_every_dtype_and_shape_is_written_as_the_library_reads_it(path, dtype):
    tensors = {
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.zeros(0, 2, dtype=dtype),
        "transposed": torch.arange(6).view(2, 3).t().to(dtype),
        "odd": torch.arange(3).to(dtype),
    }
    write_safetensors(path, [LazyTensor(n, tuple(v.shape), dtype, lambda v=v: v) for n, v in tensors.items()], {})
    read = safetensors.torch.load_file(path)
    assert read.keys() == tensors.keys()
    assert all(read[n].dtype == dtype and torch.equal(read[n], tensors[n]) for n in tensors)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0, "the tensors are aligned"


def test_metadata_says_version_config_and_what_the_caller_adds(path, state):
    write_state_dict(path, state, SMALL, {"stage": "unet", "steps": "70"})
    metadata = read_metadata(path)
    assert metadata["ldm_us"] == ldm_us.__version__
    assert json.loads(metadata["config"]) == json.loads(json.dumps(config_to_dict(SMALL)))
    assert (metadata["stage"], metadata["steps"]) == ("unet", "70")


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_weights_load_in_the_asked_dtype_or_float32(path, state, dtype):
    write_state_dict(path, {name: value.half() for name, value in state.items()}, SMALL)
    loaded = load_model(path, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype or torch.float32}
    weight = state["unet.encoder.conv_in.weight"].half().to(dtype or torch.float32)
    assert torch.equal(loaded.unet.encoder.conv_in.weight, weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_the_name_of_their_tensor(path, state, bad):
    name = next(name for name in state if name.endswith("conv_out.weight"))
    spoilt = {**state, name: state[name].clone()}
    spoilt[name].view(-1)[3] = bad
    write_state_dict(path, spoilt, SMALL)
    with pytest.raises(ValueError, match=rf"{name}: 1 of its {spoilt[name].numel()} values is NaN or infinite"):
        load_model(path)


def test_a_missing_file_and_a_folder_are_refused(path, tmp_path):
    assert "no such file" in refusal(path)
    path.mkdir()
    assert "a folder, not a model file. Of a diffusers folder" in refusal(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 1000, -1])
def test_an_empty_or_truncated_file_is_refused(path, state, keep):
    write_state_dict(path, state, SMALL)
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a whole safetensors file" in refusal(path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_metadata(path)


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00.", b"\xff" * 64, b"{}"])
def test_a_file_of_another_kind_is_refused(path, data):
    path.write_bytes(data)
    assert "not a whole safetensors file" in refusal(path)


def test_a_safetensors_file_of_others_is_refused_with_the_command_that_converts_it(path):
    safetensors.torch.save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, path)
    assert "python -m weights_convert import" in refusal(path)


def test_missing_unknown_and_misshaped_tensors_are_refused_and_named(path, state):
    del state["unet.decoder.conv_out.bias"]
    state["unet.colour"] = torch.zeros(1)
    state["vae.quant_conv.bias"] = torch.zeros(3)
    write_state_dict(path, state, SMALL)
    message = refusal(path)
    assert "1 tensors missing (unet.decoder.conv_out.bias)" in message
    assert "1 tensors unknown (unet.colour)" in message
    assert "1 tensors of another shape (vae.quant_conv.bias)" in message


def test_half_a_controlnet_is_refused(path, state):
    write_state_dict(path, state | {"controlnet.zero_conv_middle.bias": torch.zeros(8)}, SMALL)
    assert "tensors missing (controlnet." in refusal(path)


@pytest.mark.parametrize(
    "config",
    [
        *("", "nonsense", "null", "5", "[]", "{}", '{"name": "small"}'),
        *(json.dumps(config_to_dict(SMALL) | {"vae": part}) for part in (None, 5, {}, [1])),
        *(
            json.dumps(config_to_dict(SMALL) | {"unet": config_to_dict(SMALL)["unet"] | wrong})
            for wrong in ({"width": 9}, {"width": "a"}, {"width": -8}, {"groups": 0}, {"multipliers": 3})
        ),
    ],
)
def test_a_config_that_cannot_be_read_or_built_is_refused(path, state, config):
    write_state_dict(path, state, SMALL, {"config": config})
    assert "config" in refusal(path)


def lazy_tensors(state, failure):
    """The tensors of a state, the loading of the last one failing."""

    def fail():
        raise failure

    tensors = [LazyTensor(n, tuple(v.shape), v.dtype, lambda v=v: v) for n, v in state.items()]
    return [*tensors[:-1], tensors[-1]._replace(load=fail)]


@pytest.mark.parametrize("failure", [RuntimeError("cannot load"), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_tensor_that_fails_to_load_leaves_the_old_file_and_nothing_else(path, state, failure, old):
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(failure)) as raised:
        write_safetensors(path, lazy_tensors(state, failure), model_metadata(SMALL))
    assert raised.value is failure
    assert [p.read_bytes() for p in path.parent.iterdir()] == ([] if old is None else [old])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path, state, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_state_dict(path, state, SMALL)
    old = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_state_dict(path, {name: value + 1 for name, value in state.items()}, SMALL)
    assert [p.read_bytes() == old for p in path.parent.iterdir()] == [True]


def test_tensors_are_loaded_one_at_a_time_while_they_are_written(path):
    loaded = []

    def load(i):
        assert sum(reference() is not None for reference in loaded) <= 1, "the one before may still be held"
        values = torch.full((2,), float(i))
        loaded.append(weakref.ref(values))
        return values

    tensors = [LazyTensor(str(i), (2,), torch.float32, lambda i=i: load(i)) for i in range(5)]
    assert not loaded
    write_safetensors(path, tensors, {})
    assert len(loaded) == 5
    assert safetensors.torch.load_file(path)["4"].tolist() == [4.0, 4.0]


def test_loading_imports_no_compiler():
    """It would double the time from a cold start to a picture."""
    code = "import sys, ldm_us; ldm_us.load_model(ldm_us.BUNDLED); print('torch._dynamo' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_weights_are_read_once_into_memory_of_their_own_and_nothing_of_the_file_stays_mapped(model, tmp_path):
    """What the library maps counts beside its copies: the memory of a loaded model was half as large again."""
    save_model(model, path := tmp_path / "model.safetensors")
    found = dict(read_tensors(path, "unet."))
    assert {f"unet.{name}": value.tolist() for name, value in model.unet.state_dict().items()} == {
        name: value.tolist() for name, value in found.items()
    }
    assert all(value.data_ptr() % 64 == 0 for value in found.values() if value.numel())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_part(model, path, "vae", "cpu")
    path.unlink()
    with pytest.raises(ValueError, match="no such file"):
        load_part(model, path, "vae", "cpu")
