"""The configuration of a protocol: one JSON file, checked whole before anything is trained.

Options of train.py and sample.py stand in tables of option -> value, as a user would type them:
{"lr": 5e-4, "no-flip": true, "balance": [300, 150, 100]} is --lr 0.0005 --no-flip --balance 300 150 100.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ldm_us.data.organ import BREAST
from ldm_us.evaluation.protocol.classifier import ClassifierConfig, check_classifier
from ldm_us.evaluation.results import read_json
from ldm_us.runtime.checks import check_device, check_seed

Value = bool | int | float | str | list[int | float | str]
Options = Mapping[str, Value]
GROWING = ("seeds", "ratios", "alone", "resamples", "device", "threads")  # may change when a folder goes on


@dataclass(frozen=True)
class SmallGenerator:
    """The paper's second experiment: a generator of 20 percent of the images, and a classifier of its images alone."""

    held_out: float = 0.8  # "using only 20% of the BUSI dataset"
    unet: Options = field(default_factory=dict)  # of `train.py unet`
    sample: Options = field(default_factory=dict)  # of sample.py


@dataclass(frozen=True)
class ProtocolConfig:
    """Everything that decides the figures of a protocol, and where they are computed."""

    data: tuple[str, ...]  # folders of one dataset or several
    unet: Options  # of `train.py unet`, without --data, --held-out and --out
    sample: Options  # of sample.py, without --weights, --mask, --layout and --out; balance says how many
    held_out: float = 0.2  # share of the images that nothing is trained on; the paper's reference [24] tests on 0.15
    controlnet: Options | None = None  # of `train.py controlnet`; None: samples follow class prompts alone
    external: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> folders, tested on only
    small: SmallGenerator | None = None  # None leaves the second experiment out
    ratios: tuple[float, ...] = (1.0,)  # generated images per real one, beside all real ones
    alone: tuple[float, ...] = (1.0,)  # the same without real ones
    seeds: tuple[int, ...] = (0, 1, 2)  # of classifiers: initial weights, order, augmentation, validation split
    classes: tuple[str, ...] = BREAST.classes  # what the classifiers tell apart
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    resamples: int = 2000  # of the bootstrap
    device: str = "cpu"  # of the classifiers; train.py and sample.py have their own option
    threads: int = 1  # of the CPU, for the classifiers


def read_configuration(path: Path) -> ProtocolConfig:
    """Read and check a configuration file. Raise ValueError, naming the field, for what makes no sense."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give a configuration, such as docs/protocol_us128.json.")
    values = read_json(path, "Mend it.")
    try:
        config: ProtocolConfig = build_configuration(values)
        check_configuration(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def build_configuration(values: Any, kind: Any = ProtocolConfig, where: str = "") -> Any:
    """Make the dataclasses of what JSON gives; unknown and missing fields and wrong kinds are refused by name."""
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.') or 'the configuration'} is not a table of fields. Write {{...}}.")
    known, types = {one.name: one for one in dataclasses.fields(kind)}, get_type_hints(kind)
    unknown, nothing = sorted(set(values) - set(known)), dataclasses.MISSING
    if unknown:
        raise ValueError(f"{where}{unknown[0]} is not a field. Known: {', '.join(known)}.")
    for name, one in known.items():
        if one.default is nothing and one.default_factory is nothing and name not in values:
            raise ValueError(f"{where}{name} is missing. Add it.")
    return kind(**{name: field_of(one, types[name], where + name, known[name].default) for name, one in values.items()})


def field_of(value: Any, kind: Any, where: str, example: Any) -> Any:
    """A value of JSON as the type of a field: tables as dataclasses, lists as tuples."""
    optional = isinstance(kind, UnionType)
    plain: Any = next(one for one in get_args(kind) if one is not NoneType) if optional else kind
    if value is None and optional:
        return None
    if plain in (SmallGenerator, ClassifierConfig):
        return build_configuration(value, plain, f"{where}.")
    if plain == Options:
        return options_of(value, where)
    if where == "data":
        return folders_of(value, where)
    if where == "external":
        if not isinstance(value, dict):
            raise ValueError('external is not a table. Write {"name of the set": ["folder"]}.')
        return {name: folders_of(folders, f"external.{name}") for name, folders in value.items()}
    if get_origin(plain) is tuple:
        if not isinstance(value, list) or not all(is_of(one, get_args(plain)[0]) for one in value):
            raise ValueError(f"{where} is {value!r}. Write a list like {list(example)!r}.")
        return tuple(value)
    if not is_of(value, plain):
        wanted = f"a value like {example!r}" if example is not None else "the name of a file, or leave it out"
        raise ValueError(f"{where} is {value!r}. Give {wanted}.")
    return value


def is_of(value: Any, kind: Any) -> bool:
    """Whether JSON gives a value of a plain type: a float may be written as a whole number, a number is no bool."""
    return isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def folders_of(value: Any, where: str) -> tuple[str, ...]:
    """A folder, or a list of folders."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise ValueError(f'{where} is {value!r}. Write a folder, or a list of folders: ["Dataset_BUSI_with_GT"].')
    return tuple(listed)


def options_of(values: Any, where: str) -> dict[str, Value]:
    """A table of options of train.py or sample.py."""
    if not isinstance(values, dict):
        raise ValueError(f'{where} is not a table of options. Write {{"steps": 1500, ...}}.')
    for name, value in values.items():
        if value is False or not isinstance(value, bool | int | float | str | list):
            raise ValueError(
                f"{where}.{name} is {json.dumps(value)}. Give true for an option without a value, a number, a text or "
                "a list; leave the option out, or write its no- form, where it is not wanted."
            )
    return values


def check_configuration(config: ProtocolConfig) -> None:
    """Raise ValueError for numbers that make no sense and fields that do not go together."""
    for name, one in (("held_out", config), ("small.held_out", config.small)):
        if one is not None and not 0 < one.held_out < 1:
            raise ValueError(f"{name} is {one.held_out}. Use more than 0 and less than 1.")
    for name, values in (("ratios", config.ratios), ("alone", config.alone)):
        if not all(0 < ratio < 1e6 for ratio in values):
            raise ValueError(f"{name} is {list(values)}. Use numbers above 0: generated images per real one.")
    for name in ("ratios", "alone", "seeds", "classes"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} names {list(values)}: one of them twice. Give each once.")
    if not config.seeds:
        raise ValueError(f"seeds is {list(config.seeds)}. Use whole numbers, at least one.")
    for seed in config.seeds:
        check_seed(seed)
    if len(config.classes) < 2:
        raise ValueError(f"classes is {list(config.classes)}, and a classifier tells classes apart. Use two or more.")
    for name, least in (("resamples", 100), ("threads", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}. Use {least} or more.")
    check_device(config.device)
    check_classifier(config.classifier)


def as_json(config: ProtocolConfig) -> dict[str, Any]:
    """Give the configuration as JSON gives it back, every default filled in."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def differing(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Name the fields in which two configurations differ, with both values; those that may change are left out."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        if not where and name in GROWING:
            continue
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differing(one, other, f"{where}{name}.")
        elif one != other:
            found.append(f"{where}{name} was {json.dumps(one)}, is {json.dumps(other)}")
    return found
