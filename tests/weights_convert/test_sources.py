"""Opening files: every format gives the same tensors; a pickle runs no code; damage is an error and never a result."""

import os
import pickle
import sys
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from weights_convert.sources import COMPONENTS, open_source

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2).half(), "ids": torch.arange(3)}


def loaded(path):
    return {name: entry.load() for name, entry in open_source(path).entries.items()}


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def write(path, state_dict=WEIGHTS, nested=False, legacy=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state_dict, path)
    else:
        content = {"epoch": 3, "state_dict": state_dict} if nested else state_dict
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".safetensors"])
def test_every_format_gives_the_same_names_shapes_types_and_numbers(suffix, tmp_path):
    path = write(tmp_path / f"model{suffix}")
    source = open_source(path)
    assert source.files == (path,)
    described = {name: (entry.shape, entry.dtype) for name, entry in source.entries.items()}
    assert described == {name: (tuple(value.shape), value.dtype) for name, value in WEIGHTS.items()}
    assert same(loaded(path))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_may_be_nested_and_the_pickle_of_the_old_kind(nested, legacy, tmp_path):
    assert same(loaded(write(tmp_path / "model.ckpt", nested=nested, legacy=legacy)))


def test_safetensors_under_the_name_of_a_checkpoint_are_recognised_by_their_content(tmp_path):
    path = write(tmp_path / "model.safetensors")
    assert same(loaded(path.rename(tmp_path / "model.ckpt")))


def test_the_callback_named_in_sd_v1_4_is_read_without_its_package(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for package in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    callback = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", callback, raising=False)
    torch.save({"callbacks": {callback: {"monitor": "loss"}}, "state_dict": WEIGHTS}, tmp_path / "model.ckpt")
    monkeypatch.undo()
    assert same(loaded(tmp_path / "model.ckpt"))
    assert not any(module.startswith("pytorch_lightning") for module in sys.modules)


class Shell:
    """A pickle that runs a command when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_wants_to_run_a_command_is_refused_by_name_and_does_not_run_it(kind, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "model.ckpt"
    content = {"state_dict": WEIGHTS, "extra": Shell(marker)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"extra": Shell(marker)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"model\.ckpt: refused: .* (posix|nt)\.system, .*Use a \.safetensors"):
        open_source(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if kind != "plain pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the trap does work


def test_a_file_that_is_not_there_empty_or_something_else_is_explained(tmp_path):
    def message(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            open_source(tmp_path / name)
        return str(error.value)

    with pytest.raises(ValueError, match="no such file or folder"):
        open_source(tmp_path / "nothing.ckpt")
    assert "is empty" in message("a.safetensors", b"")
    assert "not a PyTorch checkpoint" in message("b.ckpt", b"<!DOCTYPE html><html>")
    assert "not a sound .safetensors" in message("c.safetensors", b"<!DOCTYPE html><html>")
    assert "ending in .safetensors, .ckpt" in message("d.png", b"\x89PNG" * 20)
    assert "git lfs pull" in message("e.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    torch.save([torch.zeros(1)], tmp_path / "f.pt")
    with pytest.raises(ValueError, match="holds a list, not a dictionary of tensors"):
        open_source(tmp_path / "f.pt")
    with pytest.raises(ValueError, match="no weights in this folder"):
        open_source(tmp_path)


def test_an_entry_that_is_no_tensor_is_named(tmp_path):
    torch.save({"a": torch.zeros(1), "step": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="entry 'step' is a int, not a tensor"):
        open_source(tmp_path / "model.pt")


def test_a_type_of_number_that_is_not_known_is_named(tmp_path):
    save_file({"a": torch.zeros(1).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="a has type F8_E4M3"):
        open_source(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bytes of each kind of file, small."""
    folder = tmp_path_factory.mktemp("files")
    paths = [write(folder / "model.safetensors"), write(folder / "zip.ckpt", nested=True)]
    paths.append(write(folder / "legacy.ckpt", legacy=True))
    return {path.name: path.read_bytes() for path in paths}


many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
each_kind = st.sampled_from(["model.safetensors", "zip.ckpt", "legacy.ckpt"])


@many
@given(name=each_kind, share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(files, tmp_path, name, share):
    content = files[name]
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"(empty|sound|cut short|refused).*"):
        loaded(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@many
@given(name=each_kind, at=st.integers(0), flip=st.integers(1, 255))
def test_a_changed_byte_gives_tensors_or_a_value_error_and_nothing_else(files, tmp_path, name, at, flip):
    content = bytearray(files[name])
    content[at % len(content)] ^= flip
    (tmp_path / name).write_bytes(content)
    try:
        said = str(open_source(tmp_path / name).files)
    except ValueError as error:
        said = str(error)
    assert name in said


def test_a_diffusers_folder_prefers_full_precision_then_safetensors(tmp_path):
    for best in range(4):  # from the worst kind of file to the best
        for component, names in COMPONENTS.items():
            if component != "controlnet":
                write(tmp_path / component / names[3 - best])
        source = open_source(tmp_path)
        ends = [".fp16.bin", ".fp16.safetensors", ".bin", ".safetensors"]
        assert [file.name.removeprefix(file.name.split(".")[0]) for file in source.files] == [ends[best]] * 3
        assert {name.split("/")[0] for name in source.entries} == {"unet", "vae", "text_encoder"}


def test_the_folder_of_one_component_can_be_given_alone(tmp_path):
    write(tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(loaded(tmp_path))


def test_a_device_a_pipe_or_a_folder_under_the_name_of_weights_is_no_file_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.ckpt", "zero.safetensors"):
        with pytest.raises(ValueError, match=f"{name}: a device or a pipe, not a file"):
            open_source(tmp_path / name)
    for component in ("unet", "vae", "text_encoder"):
        (tmp_path / component).mkdir()
    os.mkfifo(tmp_path / "unet" / COMPONENTS["unet"][0])
    (tmp_path / "vae" / COMPONENTS["vae"][0]).symlink_to("/dev/zero")
    (tmp_path / "text_encoder" / COMPONENTS["text_encoder"][0]).mkdir()
    with pytest.raises(ValueError, match="no weights in this folder"):
        open_source(tmp_path)


def test_a_link_that_points_to_itself_is_explained(tmp_path):
    (tmp_path / "x.ckpt").symlink_to(tmp_path / "x.ckpt")
    with pytest.raises((ValueError, OSError), match=r"no such file|symbolic"):
        open_source(tmp_path / "x.ckpt")


def test_a_name_that_cannot_be_shown_in_a_line_is_refused(tmp_path):
    torch.save({"a\nb": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"model\.pt: a tensor has a name of 3 characters that cannot be shown \(a\?b\)"
    ):
        open_source(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "wrap", [("state_dict",), ("model",), ("module",), ("state_dict", "model"), ("model", "state_dict")]
)
def test_nested_state_dicts_are_found_under_the_names_that_trainers_use(tmp_path, wrap):
    content: dict = {"a.weight": torch.ones(2), "b.bias": torch.zeros(3)}
    for name in wrap:
        content = {name: content, "epoch": 3}
    torch.save(content, tmp_path / "model.pt")
    assert set(open_source(tmp_path / "model.pt").entries) == {"a.weight", "b.bias"}


def test_the_prefix_of_a_parallel_module_is_taken_off(tmp_path):
    torch.save({"model": {"module.a.weight": torch.ones(2)}}, tmp_path / "model.pt")
    assert set(open_source(tmp_path / "model.pt").entries) == {"a.weight"}
