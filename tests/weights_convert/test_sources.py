"""Opening files: every format gives the same tensors; a pickle runs no code; damage is an error and never a result."""

import argparse
import collections
import datetime
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile
from fractions import Fraction

import numpy as np
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
    torch.save({"a": torch.zeros(1), "gain": 0.5}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="entry 'gain' is a float, not a tensor"):
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
    ends = [".non_ema.bin", ".bf16.safetensors", ".fp16.bin", ".fp16.safetensors", ".bin", ".safetensors"]
    for end in ends:  # from the worst kind of file to the best
        for component in ("unet", "vae", "text_encoder"):
            stem = COMPONENTS[component][0].partition(".")[0]
            stem = "pytorch_model" if stem == "model" and end.endswith("bin") else stem
            write(tmp_path / component / f"{stem}{end}")
        source = open_source(tmp_path)
        assert [file.name.removeprefix(file.name.split(".")[0]) for file in source.files] == [end] * 3
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


def write_shards(folder, names=("s-1.safetensors", "s-2.safetensors"), index="diffusion_pytorch_model.safetensors"):
    """WEIGHTS in two files, and the index that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(WEIGHTS)
    for name, own in zip(names, (keys[:1], keys[1:]), strict=True):
        if name is not None:
            save_file({key: WEIGHTS[key] for key in own}, folder / name)
    where = {key: names[key != keys[0]] or "lost.safetensors" for key in keys}
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("place", ["", "unet"])
def test_the_shards_of_an_index_are_read_as_one_file(place, tmp_path):
    write_shards(tmp_path / place)
    found = {name.removeprefix("unet/"): value for name, value in loaded(tmp_path).items()}
    assert same(found)
    assert [file.name for file in open_source(tmp_path).files] == ["s-1.safetensors", "s-2.safetensors"]


def test_shards_that_are_missing_elsewhere_or_not_what_the_index_says_are_named(tmp_path):
    def refused(folder, sentence):
        with pytest.raises(ValueError, match=sentence):
            open_source(folder)

    refused(write_shards(tmp_path / "lost", ("s-1.safetensors", None)), "1 of the 2 files .* not there: lost")
    (tmp_path / "up").mkdir()
    write(tmp_path / "outside.safetensors")
    for outside in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index = {"weight_map": {"a.weight": outside}}
        (tmp_path / "up" / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(tmp_path / "up", "a file that is not beside it")
    other = write_shards(tmp_path / "other")
    save_file({"x": torch.ones(1)}, other / "s-2.safetensors")
    refused(other, r"do not hold the tensors that it lists \(a.bias, ids\)")
    for text in ("{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        (other / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        refused(other, "index.json: (not JSON|holds a list|has no weight_map)")


def test_endings_in_capitals_are_the_same_endings(tmp_path):
    assert same(loaded(write(tmp_path / "model.ckpt").rename(tmp_path / "MODEL.CKPT")))
    assert same(loaded(write(tmp_path / "model.safetensors").rename(tmp_path / "MODEL.SAFETENSORS")))


def test_numpy_types_and_devices_beside_the_weights_are_passed_over_and_never_made(tmp_path):
    beside = {"score": np.float64(0.1), "seed": np.int64(3), "row": np.arange(3), "kind": np.dtype("f4")}
    beside |= {"dtype": torch.bfloat16, "device": torch.device("cuda", 0)}
    for legacy in (False, True):
        content = {"state_dict": WEIGHTS, "callbacks": beside}
        torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
        assert same(loaded(tmp_path / "model.ckpt"))
    torch.save({**WEIGHTS, "score": np.float64(0.1)}, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match=r"entry 'score' is a numpy\.\w+\.multiarray\.scalar, not a tensor"):
        open_source(tmp_path / "flat.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("wrap", ["_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
def test_the_wrappers_of_compiled_and_parallel_modules_are_taken_off(name, wrap, tmp_path):
    assert same(loaded(write(tmp_path / name, {wrap.format(key): value for key, value in WEIGHTS.items()})))


def test_names_with_and_without_a_wrapper_in_one_file_stay_as_they_are(tmp_path):
    both = {"a": torch.ones(1), "_orig_mod.a": torch.zeros(1)}
    assert same(loaded(write(tmp_path / "model.pt", both)), both)


def test_bytes_behind_the_last_tensor_are_called_that_and_not_cut_short(tmp_path):
    path = write(tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes() + b"???")
    with pytest.raises(ValueError, match="3 bytes follow its last tensor") as error:
        open_source(path)
    assert "cut short" not in str(error.value)


def test_what_trainers_keep_beside_the_weights_is_passed_over_and_never_made(tmp_path):
    table = collections.defaultdict(list)
    table["lr"].append(0.1)
    beside = {
        "args": argparse.Namespace(lr=1e-4, path=pathlib.PurePosixPath("a/b"), table=table),
        "paths": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b"), pathlib.Path("c")],
        "times": [datetime.datetime(2020, 1, 2), datetime.date(2020, 1, 2), datetime.timedelta(1)],
        "version": torch.torch_version.TorchVersion("2.1.0"),
    }
    for legacy in (False, True):
        for content in ({"state_dict": WEIGHTS, **beside}, {"ema": WEIGHTS, **beside}):
            torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
            assert same(loaded(tmp_path / "model.ckpt"))
    torch.save({**WEIGHTS, "global_step": 5, "arch": "unet"}, tmp_path / "flat.pt")
    assert same(loaded(tmp_path / "flat.pt"))


def test_a_new_object_of_any_other_class_is_refused(tmp_path):
    torch.save({"state_dict": WEIGHTS, "x": Fraction(1, 2)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"asks for fractions\.Fraction"):
        open_source(tmp_path / "model.ckpt")
    program = b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatStorage\n)\x81s."
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(ValueError, match=r"this pickle calls torch\.FloatStorage"):
        open_source(tmp_path / "x.ckpt")
