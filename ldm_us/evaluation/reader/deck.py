"""Which images the readers see, in which order, and what is true of each: the key, which no reader may have.

Real and generated images come in equal numbers and, class by class, in the same shares: else a reader could answer
right from the class alone. Of a near-duplicate family, a patient or a mask, one image is shown. Families are those of
both sets together: a generated image of a family with a real one is left out, for a reader would know it again.

Both kinds go through one chain of sizes, for a sharper, softer or larger kind would be known by that alone. Real images
are, as a rule, larger than generated ones, and enlarging one kind blurs it: nothing is enlarged. Every image is first
brought to the smallest side that an image of either set has, as training does with real images, and then, real or
generated, to the side that is shown.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from PIL import Image
from torch import Tensor

from ldm_us.data.medical import is_medical
from ldm_us.data.near_duplicates import merge_groups, near_duplicates
from ldm_us.data.opening import open_image
from ldm_us.data.organ import BREAST, UNKNOWN
from ldm_us.data.records import Record, image_tensor
from ldm_us.evaluation.sets.image_sets import check_enough, one_per_group
from ldm_us.files.atomic import sha256_file, write_text

LEAST = 10  # images of each kind: at 10 and 10 a reader's accuracy is known to +- 0.2
RATINGS = {1: "surely generated", 2: "probably generated", 3: "probably real", 4: "surely real"}  # the answers
NOT_HIDDEN = (
    "Text, calipers and marks that are burned into real images, and margins around the scan, tell them from generated "
    "ones: leave such images out of --real, or say in the study that they were shown."
)


@dataclass(frozen=True)
class Card:
    """One image of the study, in the order of showing."""

    file: str
    sha256: str
    real: bool
    label: str  # its class, or "unknown"


@dataclass(frozen=True)
class Key:
    """What the organiser keeps: `study` also stands in the sheet and in every answer."""

    study: str
    sides: tuple[int, ...]  # of the squares that every image is resized to, in turn; the last is shown
    cards: tuple[Card, ...]
    ask_class: bool = False
    seed: int = 0  # of choice and order
    families_shared: int = 0  # generated images left out because they are of a family with a real one
    prepared: str = ""  # what was done to the images, in a sentence
    classes: tuple[str, ...] = BREAST.classes  # that readers choose from


def make_key(
    real: Sequence[Record],
    generated: Sequence[Record],
    n: int,
    sides: tuple[int, ...],
    seed: int,
    ask_class: bool = False,
) -> Key:
    """Choose n / 2 images of each kind and shuffle them. Raise ValueError where there are not enough."""
    if n % 2 or n < 2 * LEAST:
        raise ValueError(f"--n {n}: half of the images are real, so use an even number of {2 * LEAST} or more.")
    order = random.Random(seed)
    merged = merged_over_both(real, generated)
    of_real = {record.group for record in merged[: len(real)]}
    apart = [record for record in merged[len(real) :] if record.group not in of_real]
    groups = [sorted(one_per_group(records)[0]) for records in (merged[: len(real)], apart)]
    for records, option in zip(groups, ("--real", "--generated"), strict=True):
        check_enough(records, n // 2, option, f"a reader study of {n} images (one image per patient, family or mask)")
    shared = len(generated) - len(apart)
    counts = shared_counts(groups, n // 2)
    cards = []
    for records, is_real in zip(groups, (True, False), strict=True):
        for label, count in counts.items():
            chosen = order.sample([record for record in records if record.label == label], count)
            cards += [Card(str(r.image), sha256_file(r.image), is_real, label) for r in chosen]
    order.shuffle(cards)
    shown = json.dumps([[card.sha256 for card in cards], sides, ask_class])
    study = sha256(shown.encode()).hexdigest()[:12]
    squares = ", then to ".join(f"{side}x{side}" for side in sides)
    prepared = f"Every image, real or generated, was made grey and resized whole to {squares}, and none was enlarged."
    return Key(study, sides, tuple(cards), ask_class, seed, shared, prepared, choices(groups))


def choices(groups: Sequence[Sequence[Record]]) -> tuple[str, ...]:
    """What readers choose from: the classes of the images; of a breast all of them, whichever it has."""
    found = {record.label for records in groups for record in records} - {UNKNOWN}
    return BREAST.classes if found <= set(BREAST.classes) else tuple(sorted(found))


def merged_over_both(real: Sequence[Record], generated: Sequence[Record]) -> list[Record]:
    """The images of both sets, real ones first, near-duplicates in one group, whichever set they are of.

    The same name of a group in both sets means nothing: samples may be numbered as the images of BUSI.
    """
    named = [
        replace(record, group=f"{kind} {record.group}")
        for kind, records in (("real", real), ("generated", generated))
        for record in records
    ]
    return merge_groups(named, near_duplicates([*real, *generated]))


def shared_counts(groups: Sequence[Sequence[Record]], n: int) -> dict[str, int]:
    """How many of each class both kinds give: as equal as what there is allows, n in all."""
    of_kind = [Counter(record.label for record in records) for records in groups]
    labels = sorted(set().union(*of_kind), key=lambda label: (label == UNKNOWN, label))
    room = {label: min(counter[label] for counter in of_kind) for label in labels}
    counts = dict.fromkeys(labels, 0)
    while sum(counts.values()) < n:
        open_labels = [label for label in labels if counts[label] < room[label]]
        if not open_labels:
            listed = ", ".join(f"{room[label]} {label}" for label in labels)
            raise ValueError(
                f"--n {2 * n}: both sets together give only {listed} of each kind. Use a smaller --n, or more images "
                "of the class that lacks them."
            )
        counts[min(open_labels, key=lambda label: counts[label])] += 1
    return {label: count for label, count in counts.items() if count}


def chain_of_sides(real: Sequence[Record], generated: Sequence[Record], size: int | None) -> tuple[int, ...]:
    """Return the sides, in pixels, of the squares that every image is resized to, one after the other.

    The last is shown: `size`, or the smallest side of all images. Raise ValueError for a `size` above that.
    """
    smallest, option, path = min(
        (_side(record.image), option, record.image)
        for option, records in (("--real", real), ("--generated", generated))
        for record in records
    )
    if size is not None and size > smallest:
        raise ValueError(
            f"--size {size}: {option} has an image of {smallest} pixels a side ({path.name}), which would be blurred "
            f"and known by that. Use {smallest} or less, or leave the small images out."
        )
    return (smallest,) if size in (None, smallest) else (smallest, size)


def _side(path: Path) -> int:
    if is_medical(path):
        return min(open_image(path).size)
    with Image.open(path) as picture:  # the header alone: check_sets has decoded it
        return min(picture.size)


def prepare(path: Path, sides: Sequence[int]) -> Tensor:
    """Take an image through the chain: (1, size, size) in [0, 1]."""
    picture = open_image(path).convert("L")
    for side in sides[:-1]:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return image_tensor(picture, sides[-1])[:1] / 2 + 0.5


def write_key(key: Key, path: Path) -> None:
    """Write the key as JSON, atomically."""
    write_text(path, json.dumps(asdict(key), indent=1) + "\n")


def read_key(path: Path) -> Key:
    """Undo write_key. Raise ValueError for a file that holds no key."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cards = tuple(Card(**card) for card in values["cards"])
        if {card.real for card in cards} != {True, False} or any(type(card.real) is not bool for card in cards):
            raise ValueError('its cards are not images of which "real" is true of some and false of others')
        if not all(isinstance(text, str) for card in cards for text in (card.file, card.sha256, card.label)):
            raise ValueError("a file, sha256 or label is not a text")
        chosen = {"classes": tuple(values["classes"])} if "classes" in values else {}
        return Key(
            **(values | {"study": str(values["study"]), "sides": tuple(values["sides"]), "cards": cards} | chosen)
        )
    except FileNotFoundError as error:
        raise ValueError(f"--key {path}: no such file. Give the key.json that `reader make` wrote.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"--key {path}: not a key of a reader study ({error}). Give the key.json.") from error
