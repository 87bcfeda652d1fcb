"""Weights of a timm network as one file: safetensors, or a PyTorch file, of which files/pickle_file.py runs nothing.

Three kinds are known: a file that names its network (key "timm" of the metadata, with "classes"), the names that timm
and torchvision give their weights, and those of RadImageNet's PyTorch ResNet-50 (a Sequential, backbone.0 on).
"""

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from ldm_us.evaluation.judge.file import misfits
from ldm_us.files import pickle_file
from ldm_us.files.safetensors_header import open_safetensors

# A Sequential of the children of a ResNet: 2, 3 and 8 are ReLU and pooling, which have no weights.
RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
PREFIXES = ("module.", "backbone.")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # timm's, of pixels in [0, 1]
HELP = "Give a safetensors or PyTorch file of weights, not a whole pickled model."


# What the protocol's classifiers said before they said mean and std.
NORMALISATIONS = {
    "none": {"mean": "[0, 0, 0]", "std": "[1, 1, 1]"},
    "imagenet": {"mean": json.dumps(IMAGENET_MEAN), "std": json.dumps(IMAGENET_STD)},
}


class Input(NamedTuple):
    """The images that a network was made for."""

    size: int  # pixels along one side
    mean: tuple[float, ...]  # of the normalisation of pixels in [0, 1], per channel
    std: tuple[float, ...]


class Network(NamedTuple):
    """A network without its classifier."""

    name: str  # timm's
    model: Any  # an nn.Module with timm's forward_features and forward_head
    input: Input
    trained_on: frozenset[str]  # digests of its training images, as far as its file tells


def read_metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for a file of another kind. ValueError where there is no file."""
    if not path.is_file():
        raise ValueError(f"--features {path}: no such file. Give `vae`, a judge's file, or weights of a timm network.")
    try:
        with open_safetensors(path) as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def load_network(path: Path, name: str | None, device: str = "cpu") -> Network:
    """Build the timm network that the file or else `name` says, with the weights of the file, without its classifier.

    Raise ValueError for a network that timm does not know, and for weights that cannot be read or do not fit.
    """
    import timm  # takes a second, which the other commands need not wait

    metadata = read_metadata_of(path)
    state, radimagenet = in_timm_names(read_weights(path))
    name = metadata.get("timm", name)
    if name is None:
        raise ValueError(f"--features {path}: does not say which network it is of. Add --network, such as resnet50.")
    config = config_of(name)
    first = state.get(f"{config.first_conv}.weight")
    channels = int(first.shape[1]) if first is not None and first.ndim == 4 else 3  # of the images trained on
    model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    classifier = config.classifier if isinstance(config.classifier, tuple | list) else [config.classifier]
    state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in classifier}
    wrong = misfits(model, state)
    if wrong:
        raise ValueError(f"--features {path}: not the weights of {name}: {wrong}. Give the --network that they are of.")
    model.load_state_dict(state, strict=True)
    mean, std = (per_channel((0.5,) if radimagenet else values, channels) for values in (config.mean, config.std))
    usual = Input(config.input_size[-1], mean, std)
    model = model.eval().requires_grad_(False).to(device)
    return Network(name, model, said_input(path, metadata, usual), said_images(path, metadata))


@cache  # a classifier asks with every batch
def config_of(name: str) -> Any:
    """What timm knows of a network: input_size, mean, std, first_conv, classifier."""
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        alike = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(alike)}?" if alike else " `timm.list_models()` lists them."
        raise ValueError(f"--network {name}: timm {timm.__version__} does not know it.{hint}")
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file: its state dict, or the one in a training checkpoint."""
    try:
        if path.suffix == ".safetensors":
            with open_safetensors(path) as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return pickle_file.read_weights(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise ValueError(f"{path}: cannot be read as weights ({reason}). {HELP}") from error


def in_timm_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Name weights as timm does; and whether they were named as RadImageNet's are."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not all(name.split(".")[0] in RESNET_CHILDREN for name in state):
        return state, False
    split = {name: name.split(".", 1) for name in state}
    return {f"{RESNET_CHILDREN[split[name][0]]}.{split[name][1]}": value for name, value in state.items()}, True


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """The normalisation of colour images as one of so many channels: where they are others, its mean for each."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def said_input(path: Path, metadata: dict[str, str], usual: Input) -> Input:
    """The input that the metadata say, as JSON under "size", "mean" and "std"; else the usual one."""
    try:
        metadata = NORMALISATIONS.get(metadata.get("normalisation", ""), {}) | metadata
        said = {key: json.loads(metadata[key]) for key in Input._fields if key in metadata}
        size, mean, std = (usual._asdict() | said).values()
        given = Input(int(size), tuple(map(float, mean)), tuple(map(float, std)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"--features {path}: size, mean or std in its metadata is no number ({error}).") from error
    if given.size < 1 or {len(given.mean), len(given.std)} != {len(usual.mean)} or min(given.std) <= 0:
        raise ValueError(f"--features {path}: {given} in its metadata does not fit {len(usual.mean)} channels.")
    return given


def said_images(path: Path, metadata: dict[str, str]) -> frozenset[str]:
    """The digests of training images that the metadata list, as JSON under "images"; none where they do not."""
    try:
        return frozenset(map(str, json.loads(metadata.get("images", "[]"))))
    except (ValueError, TypeError) as error:
        raise ValueError(f"--features {path}: images in its metadata is no list ({error}). {HELP}") from error
