"""The classifier of the paper's experiments: any network of timm, ResNet-50 by default, and its file.

The values are those of the paper's reference [24], read from that group's public code; see ClassifierConfig.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldm_us
from ldm_us.evaluation.distribution.network_file import config_of, in_timm_names, read_weights
from ldm_us.evaluation.judge.file import misfits
from ldm_us.files.checkpoint import lazy_tensors, write_safetensors
from ldm_us.training.perceptual import EFFICIENTNET, installed_weights, read_efficientnet

PRECISIONS = ("fp32", "bf16")
IMAGENET = "imagenet"  # instead of a file of weights


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is made and trained. [24] is the paper's reference for its training set-up."""

    network: str = "resnet50"  # a name of timm; the paper: "Resnet-50"
    size: int = 224  # pixels a side, [24]
    weights: str | None = None  # a state dict to start from, "imagenet": of the extra; None: random initial weights
    epochs: int = 100  # [24]; of the real training images where equal_steps, see below
    warmup_epochs: int = 5  # linear, [24]
    batch: int = 64  # [24]
    lr: float = 6.25e-5  # peak, [24]; made for ImageNet weights, and low for random ones
    weight_decay: float = 0.05  # of AdamW, [24]
    label_smoothing: float = 0.1  # [24]
    crop: tuple[float, float] = (0.8, 1.0)  # RandomResizedCrop: share of the area, [24]; no flip there
    rotation: float = 15.0  # degrees either way, [24]
    brightness: float = 0.02  # ColorJitter, [24]
    contrast: float = 0.2  # ColorJitter, [24]
    imagenet_normalisation: bool = False  # that of the network's ImageNet weights; [24] feeds [0, 1] as it is
    validation: float = 0.15  # share of the training images that chooses the epoch, [24]; ours in whole families
    equal_steps: bool = True  # every arm takes as many steps as the real one; ours: else more data is more steps too
    precision: str = "fp32"  # bf16: autocast, 2.5 times as fast on CPUs with bf16 units


def check_classifier(config: ClassifierConfig) -> None:
    """Raise ValueError for values that make no sense."""
    for name in ("size", "epochs", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"classifier.{name} is {getattr(config, name)}. Use 1 or more.")
    if not 0 <= config.warmup_epochs < config.epochs:
        raise ValueError(f"classifier.warmup_epochs is {config.warmup_epochs}. Use 0 up to below {config.epochs}.")
    for name in ("lr", "weight_decay", "rotation", "brightness", "contrast"):
        value = getattr(config, name)
        if not 0 <= value < math.inf or (name == "lr" and value == 0):
            raise ValueError(f"classifier.{name} is {value}. Use a finite number{' above' if name == 'lr' else ','} 0.")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"classifier.label_smoothing is {config.label_smoothing}. Use 0 up to below 1.")
    if not 0 < config.validation < 1:
        raise ValueError(f"classifier.validation is {config.validation}. Use more than 0 and less than 1.")
    if len(config.crop) != 2 or not 0 < config.crop[0] <= config.crop[1] <= 1:
        raise ValueError(f"classifier.crop is {list(config.crop)}. Use two shares of the area, such as [0.8, 1.0].")
    if config.precision not in PRECISIONS:
        raise ValueError(f"classifier.precision is {config.precision!r}. Use {' or '.join(PRECISIONS)}.")
    import timm  # here and below: it takes seconds, and the other commands have no use for it

    if not timm.is_model(config.network):
        raise ValueError(f"classifier.network is {config.network!r}, which timm {timm.__version__} does not know.")
    if config.weights == IMAGENET and config.network != EFFICIENTNET:
        raise ValueError(
            f"classifier.weights: the extra `perceptual` holds ImageNet weights of {EFFICIENTNET} alone, and "
            f"classifier.network is {config.network!r}. Change the network, or give a file of its weights."
        )
    start = start_file(config)
    if start is not None and not start.is_file():
        raise ValueError(
            f"classifier.weights: {start} is no file. Give a state dict, {IMAGENET!r} for those of the extra "
            "`perceptual`, or leave it out."
        )


def start_file(config: ClassifierConfig) -> Path | None:
    """The file of the weights to start from. Raise ValueError, naming the extra, where it is asked for and missing."""
    if config.weights == IMAGENET:
        return installed_weights()
    return None if config.weights is None else Path(config.weights)


def build_classifier(config: ClassifierConfig, classes: int, seed: int) -> tuple[nn.Module, str | None]:
    """Make a network with a fresh head, and a note on what of its weights file was not used."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(config.network, pretrained=False, num_classes=classes)
    path, note = start_file(config), None
    if path is not None:
        google = config.weights == IMAGENET
        state = read_efficientnet(path).state_dict() if google else in_timm_names(read_weights(path))[0]
        note = load_start(network, path, state)
    return network.to(memory_format=torch.channels_last), note  # a third faster on a CPU


def load_start(network: nn.Module, path: Path, state: dict[str, Tensor]) -> str | None:
    """Load the state dict of a file in place; the head of another number of classes is dropped, and a note says so."""
    head = {name: value for name, value in network.state_dict().items() if name.startswith(classifier_head(network))}
    dropped = {name: one for name, one in head.items() if name not in state or state[name].shape != one.shape}
    state = state | dropped
    if wrong := misfits(network, state):
        raise ValueError(f"{path}: {wrong}. Give the weights of the classifier.network that is asked for.")
    network.load_state_dict(state)
    return f"the head of {path.name} has another shape and is drawn at random" if dropped else None


def classifier_head(network: nn.Module) -> str:
    """What the names of the last layer's weights begin with, as timm gives it."""
    name = getattr(network, "default_cfg", {}).get("classifier", "fc")
    return f"{name if isinstance(name, str) else name[0]}."


def normalisation(config: ClassifierConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of pixels in [0, 1], per channel, that the network's input is normalised by."""
    if not config.imagenet_normalisation:
        return (0.0,) * 3, (1.0,) * 3
    made_for = config_of(config.network)
    return made_for.mean, made_for.std


def save_classifier(
    network: nn.Module,
    path: Path,
    config: ClassifierConfig,
    classes: tuple[str, ...],
    images: Sequence[str],
    about: dict[str, Any],
) -> None:
    """Write the weights with what network_file.py needs to use them: timm's name, classes, size, mean, std.

    `images`: digests of the images trained or chosen on, of their pixels or their files: no measure is taken on those.
    """
    mean, std = normalisation(config)
    metadata = {
        "ldm_us": ldm_us.__version__,
        "timm": config.network,
        "classes": json.dumps(classes),
        "size": str(config.size),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "images": json.dumps(images),
        "training": json.dumps(about),
    }
    write_safetensors(path, lazy_tensors(network.state_dict()), metadata)
