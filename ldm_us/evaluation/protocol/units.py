"""One classifier of one arm and one seed: trained, tested, and written so that it need not be done again.

FOLDER/classifiers/ARM/seed_N holds model.safetensors and result.json, written last: the probabilities of every test
image with its digest, group and class, from which every figure can be computed again.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_us.data.records import Record, load_image
from ldm_us.evaluation.protocol.arms import Arm, TrainingData
from ldm_us.evaluation.protocol.classifier import build_classifier, save_classifier
from ldm_us.evaluation.protocol.classifier_training import (
    EpochFigures,
    Images,
    best_epoch,
    predict,
    steps_per_epoch,
    train_classifier,
)
from ldm_us.evaluation.protocol.configuration import ProtocolConfig
from ldm_us.evaluation.protocol.splits import counts_by_class
from ldm_us.evaluation.results import read_json, write_text
from ldm_us.files.atomic import sha256_file
from ldm_us.training.dataset import to_uint8

Result = dict[str, Any]


class ImagePool:
    """Decoded images by file, each decoded and resized once for all classifiers, and hashed once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pixels: dict[Path, torch.Tensor] = {}
        self.digests: dict[Path, str] = {}

    def images(self, records: Sequence[Record], classes: Sequence[str]) -> Images:
        """The pixels and class indices of records."""
        for record in records:
            if record.image not in self.pixels:
                self.pixels[record.image] = to_uint8(load_image(record.image, self.size)[:1])
        labels = torch.tensor([classes.index(record.label) for record in records])
        return Images(torch.stack([self.pixels[record.image] for record in records]), labels)

    def digest(self, record: Record) -> str:
        """The SHA-256 of an image file."""
        if record.image not in self.digests:
            self.digests[record.image] = sha256_file(record.image)
        return self.digests[record.image]


@dataclass(frozen=True)
class Unit:
    """One classifier: of an arm and a seed, what it is trained and tested on."""

    arm: Arm
    seed: int
    data: TrainingData
    tests: Mapping[str, Sequence[Record]]  # of all arms, by name
    reference_images: int  # what the real arm of this seed trains on

    def folder(self, out: Path) -> Path:
        """Where it lies."""
        return out / "classifiers" / self.arm.folder / f"seed_{self.seed}"


def finish_unit(
    unit: Unit, config: ProtocolConfig, pool: ImagePool, out: Path, on_epoch: Callable[[EpochFigures], None]
) -> Result:
    """The result of a unit, trained where it is not there yet."""
    folder, data, seed = unit.folder(out), unit.data, unit.seed
    asked = unit_fingerprint(unit, config, pool)
    done: Result | None = read_json(folder / "result.json", "Delete it: the classifier is trained again.")
    if done is not None:
        if done.get("fingerprint") != asked:
            raise ValueError(
                f"{folder}: holds a classifier of other images or settings, though the configuration is the same. Were "
                "files of the data changed? Put them back, or start in a new --out."
            )
        return done

    began = time.perf_counter()
    network, note = build_classifier(config.classifier, len(config.classes), seed)
    train, validation = (pool.images(records, config.classes) for records in (data.train, data.validation))
    images = unit.reference_images if config.classifier.equal_steps else len(train)
    steps = steps_per_epoch(images, config.classifier.batch)
    history = train_classifier(network, train, validation, config.classifier, steps, seed, config.device, on_epoch)
    predictions = {name: predictions_on(network, unit.tests[name], config, pool) for name in unit.arm.tests}
    result: Result = {
        "fingerprint": asked,
        "arm": unit.arm.name,
        "seed": seed,
        "classes": list(config.classes),
        "start": start_of(config, note),
        "trained_on": counts_by_class(data.train, config.classes),
        "chosen_on": counts_by_class(data.validation, config.classes),
        "steps": config.classifier.epochs * steps,
        "best_epoch": best_epoch(history).epoch,
        "seconds": round(time.perf_counter() - began, 1),
        "history": [dataclasses.asdict(figures) for figures in history],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_classifier(network.cpu(), path, config.classifier, config.classes, seen_images(data, pool), dict(result))
    result |= {"model_sha256": sha256_file(path), "predictions": predictions}
    write_text(folder / "result.json", json.dumps(result) + "\n")
    return result


def seen_images(data: TrainingData, pool: ImagePool) -> list[str]:
    """The digests of the images trained and chosen on, as judge_file.image_digests gives them."""
    return sorted({pool.digest(record)[:16] for record in (*data.train, *data.validation)})


def predictions_on(network: nn.Module, records: Sequence[Record], config: ProtocolConfig, pool: ImagePool) -> Result:
    """The probabilities of every image of a test set, and which image it is."""
    pixels = pool.images(records, config.classes).pixels
    probabilities = predict(network, pixels, config.classifier, config.device)
    return {
        "sha256": [pool.digest(record) for record in records],
        "group": [record.group for record in records],
        "label": [record.label for record in records],
        "probabilities": [[round(p, 9) for p in row] for row in probabilities.tolist()],
    }


def start_of(config: ProtocolConfig, note: str | None) -> str:
    """The weights that a classifier started from, in words."""
    if config.classifier.weights is None:
        return "random initial weights"
    said = f"{Path(config.classifier.weights).name}, SHA-256 {sha256_file(config.classifier.weights)}"
    return said if note is None else f"{said}; {note}"


def unit_fingerprint(unit: Unit, config: ProtocolConfig, pool: ImagePool) -> str:
    """SHA-256 over everything that the result of a unit depends on."""

    def listed(records: Sequence[Record]) -> list[list[str]]:
        return [[pool.digest(record), record.label, record.group] for record in records]

    start = None if config.classifier.weights is None else sha256_file(config.classifier.weights)
    facts = {
        "arm": unit.arm.name,
        "seed": unit.seed,
        "classifier": dataclasses.asdict(config.classifier) | {"weights": start},
        "classes": config.classes,
        "reference_images": unit.reference_images if config.classifier.equal_steps else None,
        "train": [entry[:2] for entry in listed(unit.data.train)],
        "validation": [entry[:2] for entry in listed(unit.data.validation)],
        "tests": {name: listed(unit.tests[name]) for name in unit.arm.tests},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
