"""The arms: what each classifier is trained on, chosen by, and tested on.

A ratio counts generated images per real training image. They are the first ones of the sample stage, whose classes take
turns, so a smaller arm is a part of a larger one. Classifiers with real images choose their epoch on real ones, the
same in every arm of a seed; those without have none to choose on, and choose on generated ones, as the claim
"trained with generated images alone" asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_us.data.readers.busi import read_busi
from ldm_us.data.records import Record
from ldm_us.data.split import split_by_group
from ldm_us.evaluation.protocol.configuration import ProtocolConfig
from ldm_us.evaluation.protocol.splits import HELD_OUT, OTHERS, OWN, Split
from ldm_us.synthesis.folder import MANIFEST, read_list
from ldm_us.synthesis.recipe import settings_of

REAL = "real"  # the first arm


@dataclass(frozen=True)
class Arm:
    """One kind of training set."""

    name: str
    folder: str  # of its classifiers
    real: str  # "train", "small" or "": which real images
    generated: str  # the folder of the samples, or ""
    ratio: float | None  # generated images per real one of the main experiment; None: all of the folder
    tests: tuple[str, ...]
    reference: str  # the arm that it is compared with


def plan_arms(config: ProtocolConfig) -> list[Arm]:
    """The arms of a protocol, real images first."""
    tests = (HELD_OUT, *config.external)
    arms = [Arm(REAL, "real", "train", "", 0.0, tests, REAL)]
    for ratio in sorted(config.ratios):
        name, folder = f"real + {ratio:g}x generated", f"real_generated_{ratio:g}"
        arms.append(Arm(name, folder, "train", "generated", ratio, tests, REAL))
    for ratio in sorted(config.alone):
        arms.append(Arm(f"{ratio:g}x generated", f"generated_{ratio:g}", "", "generated", ratio, tests, REAL))
    if config.small is not None:
        share = f"{100 * (1 - config.small.held_out):g}%"
        real = f"real {share}"
        arms.append(Arm(real, "small_real", "small", "", None, (OTHERS,), real))
        name = f"generated from {share}"
        arms.append(Arm(name, "small_generated", "", "generated_small", None, (OTHERS, OWN), real))
    return arms


def read_generated(folder: Path) -> list[Record]:
    """The samples of a folder in the order in which they were drawn; those of one mask are one group."""
    numbers = {entry["file_name"]: int(entry["number"]) for entry in read_list(folder / MANIFEST)}
    records = read_busi(folder)
    return sorted(records, key=lambda record: numbers[record.image.relative_to(folder).as_posix()])


def check_enough_generated(config: ProtocolConfig, split: Split, samples: int) -> None:
    """Refuse a ratio that needs more images than the sample stage makes."""
    ratio = max((*config.ratios, *config.alone), default=0.0)
    needed = round(ratio * len(split.train))
    if needed > samples:
        raise ValueError(
            f"ratio {ratio:g}: needs {needed} generated images, {ratio:g} for each of {len(split.train)} real ones, "
            f"but sample.balance makes {samples}. Sample more, or lower the ratio."
        )


def training_data(
    arm: Arm, config: ProtocolConfig, split: Split, generated: Sequence[Record], seed: int
) -> tuple[list[Record], list[Record]]:
    """What one classifier is trained on, and what chooses its epoch. Raise ValueError where it lacks a class."""
    real = {"train": split.train, "small": split.small_train, "": []}[arm.real]
    most = None if arm.ratio is None else round(arm.ratio * len(split.train))
    added = [record for record in generated[:most] if record.label in config.classes]
    train, validation = split_by_group(real or added, config.classifier.validation, seed)
    if real:
        train = train + added
    for part, records in (("train on", train), ("choose the epoch on", validation)):
        missing = [label for label in config.classes if all(record.label != label for record in records)]
        if missing:
            raise ValueError(
                f"the arm {arm.name!r}: too few images, no {' and no '.join(missing)} one to {part}. Give more, or "
                "take the class out of `classes`."
            )
    return train, validation


def manifest_settings(folder: Path) -> dict[str, object]:
    """How the samples of a folder were drawn, as its first line says."""
    first = next(iter(read_list(folder / MANIFEST)), None)
    if first is None:
        return {}
    names, sampling = ("sampler", "steps", "guidance", "control_scale", "size"), settings_of(first)["sampling"]
    return {name: sampling[name] for name in names if name in sampling} | {"weights_sha256": first["weights_sha256"]}
