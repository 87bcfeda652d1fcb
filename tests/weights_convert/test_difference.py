"""A ControlNet saved as its difference from a UNet becomes the ControlNet again, and is never taken for one."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_us.config import TINY
from ldm_us.files.checkpoint import model_metadata, write_safetensors
from ldm_us.runtime.entry import run_command
from tests.golden.converted import convert_state_dict
from tests.golden.original import PREFIXES, tiny_compvis
from weights_convert.__main__ import main

CONTROL, UNET = "control_model.", PREFIXES["unet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole model, its ControlNet as the web UI's difference, and the ControlNet that this is one of."""
    folder = tmp_path_factory.mktemp("difference")
    whole = tiny_compvis()
    control = {name: value for name, value in whole.items() if name.startswith(CONTROL)}
    model = {name: value for name, value in whole.items() if not name.startswith(CONTROL)}
    save_file(model, folder / "model.safetensors")
    difference = {
        name: value - model[twin] if (twin := name.replace(CONTROL, UNET)) in model else value
        for name, value in control.items()
    }
    assert 0 < sum(not torch.equal(difference[name], control[name]) for name in control) < len(control)
    save_file(difference | {"difference": torch.tensor(1.0)}, folder / "difference.safetensors")
    bare = {name.removeprefix(CONTROL): value for name, value in difference.items()}
    save_file(bare | {"difference": torch.tensor(1.0)}, folder / "bare.safetensors")
    halves = {name: value.half() for name, value in difference.items()}
    save_file(halves | {"difference": torch.tensor(1.0)}, folder / "half.safetensors")
    write_safetensors(folder / "ours.safetensors", [], model_metadata(TINY))
    return folder


@pytest.mark.parametrize(("name", "tolerance"), [("bare", 1e-6), ("half", 1e-2)])
def test_the_unet_is_added_to_what_a_controlnet_copies_and_to_nothing_else(name, tolerance, files, convert, tmp_path):
    options = ("--controlnet", files / f"{name}.safetensors")
    code, text, error = convert(files / "model.safetensors", "--out", tmp_path / "out.safetensors", *options)
    assert code == 0, error
    assert "saved as its difference from a UNet" in text
    found, expected = load_file(tmp_path / "out.safetensors"), convert_state_dict(tiny_compvis(), TINY)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key].float(), value, rtol=0, atol=tolerance)
        own = key.startswith(("controlnet.zero_conv", "controlnet.hint_network"))
        own_type = torch.float16 if own and name == "half" else torch.float32  # a sum is as fine as the UNet
        assert found[key].dtype == own_type
        assert not own or torch.equal(found[key], value.to(own_type))


def test_a_difference_without_a_unet_is_refused(files, convert, tmp_path):
    code, _, error = convert(files / "difference.safetensors", "--out", tmp_path / "out.safetensors")
    assert code == 2
    assert "holds controlnet, but no vae and no text and no unet" in error
    assert not (tmp_path / "out.safetensors").exists()


LAYER = "input_blocks.1.1.proj_in"
CONTROL_LORA = {"lora_controlnet": (0,), f"{LAYER}.down": (4, 32), f"{LAYER}.up": (32, 4)}


@pytest.mark.parametrize("marked", [True, False])
def test_a_control_lora_is_refused_for_what_it_is_with_the_way_round(marked, files, convert, capsys, tmp_path):
    path = tmp_path / "control_lora.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in list(CONTROL_LORA.items())[not marked :]}, path)
    out, model = tmp_path / "out.safetensors", files / "model.safetensors"
    commands = (
        ("import", path, "--preset", "tiny", "--out", out),
        ("import", model, "--preset", "tiny", "--controlnet", path, "--out", out),
        ("import", "--lora", path, "--base", files / "ours.safetensors", "--out", out),
        ("audit", path),
    )
    for words in commands:
        capsys.readouterr()
        assert run_command(lambda words=words: main([str(word) for word in words])) == 2
        error = capsys.readouterr().err
        assert "a control-LoRA" in error
        assert "Take the full ControlNet instead" in error
        assert "import --lora takes it" not in error
    assert not out.exists()
