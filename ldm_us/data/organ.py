"""What a dataset shows: its classes, the prompt of each, and which of them show no structure. Breast is one of many.

A folder says its own in `dataset.json`, where each key may be left out:

    {"template": "Ultrasound image of a {label} thyroid", "classes": ["benign", "malignant"], "without": []}

    {"structures": {"nodule": 1, "lobe": [2, 3]}}        labels of the mask files, or colours such as "#ff0000"

`classes` may also be a table, {"benign": ["2", "3"], "malignant": ["4", "5"]}: what the data call each. Without it
every label of the data is a class. `without` lists the classes of images in which there is nothing to draw, as in a
normal breast; if it is left out, that is `normal`, where there is such a class. Of `structures` each has a channel of
its own in a ControlNet's hint; a list instead of the table goes with masks that are named one by one. With
`"hint": "picture"` the files of masks are any pictures that a ControlNet is to follow.
"""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ldm_us.config import MASK, PICTURE

DESCRIPTION = "dataset.json"
UNKNOWN = "unknown"  # the label of an image whose class nobody told
LONGEST_CLASS = 100  # characters
MOST_CLASSES = 100  # of a column that may be something else, and of what is compared for misspellings
ALIKE = 0.85  # of difflib, from which two classes of a set may be one that is misspelled once
KEYS = ("template", "classes", "without", "structures", "hint")
MOST_STRUCTURES = 8
COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Organ:
    """A description; the order of `classes` is that in which an image of several is given one."""

    template: str  # of prompts, with {label} where the class stands
    classes: tuple[str, ...] = ()  # empty: whatever the data say
    without: tuple[str, ...] = ("normal",)  # classes that show no structure
    names: tuple[tuple[str, str], ...] = ()  # (what the data say, its class) where that is not the class itself
    structures: tuple[str, ...] = ()  # that masks show apart from each other; empty: a mask shows one
    levels: tuple[tuple[int | str, ...], ...] = ()  # of each in a file of labels; empty: each has masks of its own
    hint_is_picture: bool = False  # what stands for masks are pictures of any kind

    @property
    def hint(self) -> tuple[str, ...]:
        """What the channels of a hint show, as a ControlConfig has it."""
        return PICTURE if self.hint_is_picture else self.structures if len(self.structures) > 1 else MASK

    def prompt(self, label: str) -> str:
        """The prompt of a class; without one, the template without its {label}."""
        if label == UNKNOWN:
            return re.sub(r"[ ,]*\{label\}", "", self.template).strip()
        return self.template.replace("{label}", label)

    def shows(self, label: str) -> bool | None:
        """Whether images of a class show a structure; None where nobody said."""
        if label in self.without:
            return False
        return True if label in self.classes else None

    def known(self) -> dict[str, str]:
        """Every name that is described, in small letters, with its class."""
        return {one.lower(): one for one in self.classes} | {name.lower(): one for name, one in self.names}

    def find(self, text: str) -> str | None:
        """The class that a text names, in small or capital letters; None where it is none of those described."""
        return self.known().get(" ".join(text.split()).lower())

    def near(self, text: str) -> str:
        """The described name that a text is nearly; empty where it is like none."""
        return next(iter(difflib.get_close_matches(text.lower(), self.known(), 1)), "")

    def class_of(self, text: str, where: str) -> str:
        """Read the name of a class. Raise ValueError, with the nearest one, for what the description does not name."""
        label, text = self.find(text), " ".join(text.split())
        if label is not None:
            return label
        if self.classes:
            near = self.near(text)
            raise ValueError(
                f"{where}: the class is {text!r}, and there are {', '.join(self.known())}. "
                f"{f'Write {near!r}, if that is meant' if near else 'Use one of them'}, or name it in {DESCRIPTION}."
            )
        if not is_plain(text):
            raise ValueError(
                f"{where}: the class is {text!r}, and a class names a folder too. Use a few words without / and a dot "
                "in front."
            )
        return text.lower()


BREAST = Organ("Ultrasound image of a {label} breast", ("benign", "malignant", "normal"))  # arXiv 2502.08580, 3.1.1
ANY = Organ("Ultrasound image, {label}")  # of a folder that says nothing


def is_plain(text: str) -> bool:
    """Whether a text can be the name of a class, and so of a folder of samples."""
    whole = 0 < len(text) <= LONGEST_CLASS and text.isprintable() and not set(text) & set("/\\")
    return whole and not text.startswith(".")


def alike(labels: Iterable[str]) -> list[str]:
    """Note two classes of a set that nobody described which differ by a few letters: one may be misspelled."""
    letters = {label: re.sub(r"\d", "", label) for label in sorted(set(labels) - {UNKNOWN})}
    pairs = combinations(letters, 2) if len(letters) <= MOST_CLASSES else ()
    return [
        f"classes {one} and {other} are nearly one word: is that a misspelling?"
        for one, other in pairs
        if letters[one] != letters[other] and difflib.SequenceMatcher(None, one, other).ratio() > ALIKE
    ]


def organ_of(root: Path, default: Organ) -> Organ:
    """What the description in a folder says, over `default`. Raise ValueError for what makes no sense in it."""
    path = root / DESCRIPTION
    if not path.is_file():
        return default
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Mend it.") from error
    if not isinstance(given, dict):
        raise ValueError(f'{path} is not a table. Write {{"template": "...", "classes": [...], "without": [...]}}.')
    for key in given:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise ValueError(f"{path}: {key!r} is not known. Use {near[0] if near else ', '.join(KEYS)}.")
    return described(given, default, path)


def described(given: dict[str, Any], default: Organ, path: Path) -> Organ:
    """The description of a table whose keys are known."""
    template = given.get("template", default.template)
    if not isinstance(template, str) or not template.strip() or set(re.findall(r"\{.*?\}", template)) - {"{label}"}:
        raise ValueError(f"{path}: the template is {template!r}. Write a text, with {{label}} where the class stands.")
    organ, classes = replace(default, template=template), given.get("classes")
    if classes is not None:
        table = classes if isinstance(classes, dict) else {name: [] for name in list_of(classes, "classes", path)}
        names = tuple((name, one) for one in table for name in list_of(table[one], f"classes.{one}", path))
        wrong = [one for one in table if not is_plain(one) or one == UNKNOWN]
        if wrong:
            raise ValueError(f"{path}: {wrong[0]!r} cannot be a class. Use a few words without / and a dot in front.")
        without = tuple(one for one in default.without if one in table)
        organ = replace(organ, classes=tuple(table), names=names, without=without)
    if "without" in given:
        organ = replace(organ, without=tuple(list_of(given["without"], "without", path)))
        for label in organ.without:
            if organ.classes and label not in organ.classes:
                organ.class_of(label, f"{path}, without")
    if "structures" in given:
        organ = replace(organ, **structures_of(given["structures"], path))
    if "hint" in given:
        if given["hint"] not in ("mask", "picture") or (given["hint"] == "picture" and organ.structures):
            raise ValueError(f"{path}: the hint is {given['hint']!r}. Write mask or, without structures, picture.")
        organ = replace(organ, hint_is_picture=given["hint"] == "picture")
    return organ


def structures_of(given: Any, path: Path) -> dict[str, Any]:
    """The names of structures, and their levels where these are told."""
    names = list(given) if isinstance(given, dict) else list_of(given, "structures", path)
    wrong = [one for one in names if not is_plain(one)]
    if wrong or not 1 <= len(names) <= MOST_STRUCTURES:
        said = f"{wrong[0]!r} cannot be a structure" if wrong else f"there are {len(names)} structures"
        raise ValueError(f"{path}: {said}. Name 1 to {MOST_STRUCTURES}, in a few words without / and a dot in front.")
    if not isinstance(given, dict):
        return {"structures": tuple(names)}
    levels = tuple(tuple(of_one if isinstance(of_one, list) else [of_one]) for of_one in given.values())
    every = [level for of_one in levels for level in of_one]
    as_colours = [isinstance(level, str) and COLOUR.fullmatch(level) and level != "#000000" for level in every]
    as_numbers = [type(level) is int and 1 <= level < 2**16 for level in every]
    if not (all(as_colours) or all(as_numbers)) or not all(levels):
        raise ValueError(
            f"{path}: the structures are {given!r}. Give each a label, from 1 on, or a colour such as '#ff0000', or a "
            "list of them; black is what is none of them."
        )
    return {"structures": tuple(names), "levels": levels}


def list_of(value: Any, key: str, path: Path) -> list[str]:
    """A list of distinct texts."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or len(set(value)) < len(value):
        raise ValueError(f"{path}: {key} is {value!r}. Write a list of texts, each once.")
    return value
