"""One classifier of one arm and one seed: trained, tested, and written so that it need not be done again.

FOLDER/classifiers/ARM/seed_N holds model.safetensors and result.json, written last: the probabilities of every test
image with its digest, group and class, from which every figure can be computed again.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ldm_us.data.records import Record, load_image, to_uint8
from ldm_us.evaluation.protocol.arms import Arm
from ldm_us.evaluation.protocol.classifier import build_classifier, save_classifier, start_file
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
from ldm_us.evaluation.results import read_json
from ldm_us.files.atomic import sha256_file, write_text

Result = dict[str, Any]


class ImagePool:
    """Decoded images by file, each decoded and resized once for all classifiers, and hashed once."""

    def __init__(self, size: int) -> None:
        self.pixels = cache(lambda path: to_uint8(load_image(path, size)[:1]))
        self.digest = cache(sha256_file)

    def images(self, records: Sequence[Record], classes: Sequence[str]) -> Images:
        """The pixels and class indices of records."""
        labels = torch.tensor([classes.index(record.label) for record in records])
        return Images(torch.stack([self.pixels(record.image) for record in records]), labels)


class Unit(NamedTuple):
    """One classifier: of an arm and a seed, what it is trained and tested on."""

    arm: Arm
    seed: int
    train: Sequence[Record]
    validation: Sequence[Record]  # what chooses its epoch
    tests: Mapping[str, Sequence[Record]]  # by name
    reference_images: int | None  # what the real arm of this seed trains on; None: its steps are those of its own


def finish_unit(unit: Unit, config: ProtocolConfig, pool: ImagePool, out: Path, show: Callable[[str], None]) -> Result:
    """The result of a unit, trained where it is not there yet. `show` hears of every epoch."""
    folder, settings = out / "classifiers" / unit.arm.folder / f"seed_{unit.seed}", config.classifier
    asked = unit_fingerprint(unit, config, pool)
    done: Result | None = read_json(folder / "result.json", "Delete it: the classifier is trained again.")
    if done is not None:
        if done.get("fingerprint") != asked:
            raise ValueError(
                f"{folder}: holds a classifier of other images or settings, though the configuration is the same. Were "
                "files of the data changed? Put them back, or start in a new --out."
            )
        return done

    def on_epoch(one: EpochFigures) -> None:
        show(f"{unit.arm.name}, seed {unit.seed}, epoch {one.epoch}, right {one.accuracy:.2f}")

    began = time.perf_counter()
    network, note = build_classifier(settings, len(config.classes), unit.seed)
    train, validation = (pool.images(records, config.classes) for records in (unit.train, unit.validation))
    steps = steps_per_epoch(unit.reference_images or len(train), settings.batch)
    history = train_classifier(network, train, validation, settings, steps, unit.seed, config.device, on_epoch)
    predictions = {name: predictions_on(network, records, config, pool) for name, records in unit.tests.items()}
    result: Result = {
        "fingerprint": asked,
        "arm": unit.arm.name,
        "seed": unit.seed,
        "classes": list(config.classes),
        "start": start_of(config, note),
        "trained_on": counts_by_class(unit.train, config.classes),
        "chosen_on": counts_by_class(unit.validation, config.classes),
        "steps": settings.epochs * steps,
        "best_epoch": best_epoch(history).epoch,
        "seconds": round(time.perf_counter() - began, 1),
        "history": [dataclasses.asdict(figures) for figures in history],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path, seen = folder / "model.safetensors", {pool.digest(r.image)[:16] for r in (*unit.train, *unit.validation)}
    save_classifier(network.cpu(), path, settings, config.classes, sorted(seen), dict(result))
    result |= {"model_sha256": sha256_file(path), "predictions": predictions}
    write_text(folder / "result.json", json.dumps(result) + "\n")
    return result


def predictions_on(network: nn.Module, records: Sequence[Record], config: ProtocolConfig, pool: ImagePool) -> Result:
    """The probabilities of every image of a test set, and which image it is."""
    pixels = pool.images(records, config.classes).pixels
    probabilities = predict(network, pixels, config.classifier, config.device)
    return {
        "sha256": [pool.digest(record.image) for record in records],
        "group": [record.group for record in records],
        "label": [record.label for record in records],
        "probabilities": [[round(p, 9) for p in row] for row in probabilities.tolist()],
    }


def start_of(config: ProtocolConfig, note: str | None) -> str:
    """The weights that a classifier started from, in words."""
    start = start_file(config.classifier)
    if start is None:
        return "random initial weights"
    said = f"{start.name}, SHA-256 {sha256_file(start)}"
    return said if note is None else f"{said}; {note}"


def unit_fingerprint(unit: Unit, config: ProtocolConfig, pool: ImagePool) -> str:
    """SHA-256 over everything that the result of a unit depends on."""
    path = start_file(config.classifier)
    start = None if path is None else sha256_file(path)
    facts = {
        "arm": unit.arm.name,
        "seed": unit.seed,
        "classifier": dataclasses.asdict(config.classifier) | {"weights": start},
        "classes": config.classes,
        "reference_images": unit.reference_images,
        "train": [(pool.digest(record.image), record.label) for record in unit.train],
        "validation": [(pool.digest(record.image), record.label) for record in unit.validation],
        "tests": {
            name: [(pool.digest(record.image), record.label, record.group) for record in records]
            for name, records in unit.tests.items()
        },
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
