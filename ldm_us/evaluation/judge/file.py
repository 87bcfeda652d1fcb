"""A judge as one safetensors file: its weights, its config, what it was trained on and how right it is."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import ldm_us
from ldm_us.config import check_limits
from ldm_us.data.digests import image_digests as pixel_digests
from ldm_us.data.organ import UNKNOWN, is_plain
from ldm_us.data.records import Record
from ldm_us.data.words import Words
from ldm_us.evaluation.judge.network import Judge, JudgeConfig, check_judge_size
from ldm_us.files.checkpoint import lazy_tensors, write_safetensors
from ldm_us.files.json_values import parse_json
from ldm_us.files.safetensors_header import open_safetensors
from ldm_us.files.stored_tensor import shown

TRAIN_ONE = "Train one with `python -m ldm_us.evaluation train-judge`."


@dataclass(frozen=True)
class Training:
    """How a judge was made, and its figures on images that it was not trained on."""

    steps: int
    batch: int
    seed: int
    held_out: float  # share of the images
    data: list[str]  # names of the folders
    data_sha256: str  # of the training images and masks
    images: list[str]  # digests of the training images, so that none of them is evaluated on
    figures: dict[str, Any]  # as measure_judge gives them
    structure: str | None = None  # that it finds, of several that masks show


def image_digests(records: Sequence[Record]) -> list[str]:
    """The digest of every image's pixels in 16 hexadecimal digits, sorted."""
    return sorted(digest.hex() for digest in pixel_digests(records))


def seen_in_training(records: Sequence[Record], known: Set[str]) -> list[Record]:
    """Those of the records of which `known` has the digest: of the pixels, or in older files of the image's bytes."""
    digests = zip(records, pixel_digests(records), strict=True)
    return [record for record, digest in digests if not known.isdisjoint((digest.hex(), bytes_digest(record)))]


def bytes_digest(record: Record) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an image file, as older judges have them."""
    return hashlib.sha256(record.image.read_bytes()).hexdigest()[:16]


def save_judge(network: Judge, path: Path | str, training: Training) -> None:
    """Write weights, config and training to `path`, atomically."""
    about = {"classes": network.classes, "config": dataclasses.asdict(network.config)} | dataclasses.asdict(training)
    write_safetensors(
        path, lazy_tensors(network.state_dict()), {"ldm_us": ldm_us.__version__, "judge": json.dumps(about)}
    )


def load_judge(path: Path | str, device: str = "cpu") -> tuple[Judge, Training]:
    """Read a judge's file. Raise ValueError, in one sentence, for one that is missing, broken or not a judge's."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. {TRAIN_ONE}")
    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}). {TRAIN_ONE}") from error
    if "judge" not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not a judge's. {TRAIN_ONE}")
    try:
        network, training = build_judge(parse_json(metadata["judge"]))
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:  # of a config that does not fit
        raise ValueError(
            f"{path}: what it says of its judge cannot be read ({shown(repr(error))}). {TRAIN_ONE}"
        ) from error
    if wrong := misfits(network, state):
        raise ValueError(f"{path}: {wrong}. {TRAIN_ONE}")
    network.load_state_dict(state, strict=True, assign=True)
    return network.to(device).eval().requires_grad_(False), training


def structure_of(asked: str | None, judge_file: Path | None, training: Training | None) -> str | None:
    """The structure that is looked for: what was asked for, which a judge must have learned, else what it has."""
    if training is None or asked in (None, training.structure):
        return asked if training is None else training.structure
    finds = f"finds {training.structure}" if training.structure else "was trained on all structures as one"
    raise ValueError(f"--structure {asked}: {judge_file} {finds}. {TRAIN_ONE.replace('`.', f' --structure {asked}`.')}")


def asked_classes(words: Words, network: Judge, n: int) -> tuple[list[str], list[str]]:
    """n times each class that both the judge and the model know: the classes, and the model's prompts for them.

    Raise ValueError where there is none.
    """
    both = [label for label in network.classes if label in words.classes]
    if not both:
        raise ValueError(
            f"{words.name}: its classes are {', '.join(words.classes) or 'none'}, and this judge can name "
            f"{', '.join(network.classes)} alone. {TRAIN_ONE}"
        )
    asked = [label for label in both for _ in range(n)]
    return asked, [words.prompt(label) for label in asked]


def check_judged(network: Judge, labels: Iterable[str], option: str) -> None:
    """Refuse images of classes that a judge has never seen: what it marks in them says nothing."""
    others = sorted(set(labels) - {UNKNOWN, *network.classes})
    if others:
        raise ValueError(
            f"{option}: images of the class {', '.join(others)}, and the judge learned {', '.join(network.classes)} "
            "alone, so it cannot judge these. Train one on such images with `python -m ldm_us.evaluation train-judge`."
        )


def build_judge(about: dict[str, Any]) -> tuple[Judge, Training]:
    """The network without its weights, and how it was trained, from what a file says."""
    about = dict(about)
    classes, config = about.pop("classes"), about.pop("config")
    if len(classes) < 2 or len(set(classes)) < len(classes) or not all(is_plain(label) for label in classes):
        raise ValueError(f"its classes are {classes}, not two or more names")
    judge_config = JudgeConfig(**(config | {"widths": tuple(config["widths"])}))
    check_limits(judge_config)
    check_judge_size(judge_config)
    training = Training(**about)
    with torch.device("meta"):
        return Judge(judge_config, classes), training


def misfits(network: nn.Module, state: dict[str, Tensor]) -> str:
    """Which weights are of other names or shapes than the network's, in words; nothing where all fit."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"{len(wrong)} tensors missing, unknown or of another shape ({', '.join(wrong[:3])})" if wrong else ""
