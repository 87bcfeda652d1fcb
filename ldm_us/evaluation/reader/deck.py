"""Which images the readers see, in which order, and what is true of each: the key, which no reader may have.

Real and generated images come in equal numbers and, class by class, in the same shares: else a reader could answer
right from the class alone. Of a near-duplicate family, a patient or a mask, one image is shown.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from ldm_us.atomic import atomic_file, sha256_file
from ldm_us.data.records import CLASSES, Record
from ldm_us.evaluation.image_sets import check_enough
from ldm_us.evaluation.independent_images import one_per_family

LEAST = 10  # images of each kind: at 10 and 10 a reader's accuracy is known to +- 0.2


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
    size: int  # pixels of a side, as shown
    cards: tuple[Card, ...]


def make_key(real: Sequence[Record], generated: Sequence[Record], n: int, size: int, seed: int) -> Key:
    """Choose n / 2 images of each kind and shuffle them. Raise ValueError where there are not enough."""
    if n % 2 or n < 2 * LEAST:
        raise ValueError(f"--n {n}: half of the images are real, so use an even number of {2 * LEAST} or more.")
    order = random.Random(seed)
    groups = [sorted(one_per_family(records).records) for records in (real, generated)]
    for records, option in zip(groups, ("--real", "--generated"), strict=True):
        check_enough(records, n // 2, option, f"a reader study of {n} images (one image per patient, family or mask)")
    counts = shared_counts(groups, n // 2)
    cards = []
    for records, is_real in zip(groups, (True, False), strict=True):
        for label, count in counts.items():
            chosen = order.sample([record for record in records if record.label == label], count)
            cards += [Card(str(r.image), sha256_file(r.image), is_real, label) for r in chosen]
    order.shuffle(cards)
    study = sha256("".join(card.sha256 for card in cards).encode()).hexdigest()[:12]
    return Key(study, size, tuple(cards))


def shared_counts(groups: Sequence[Sequence[Record]], n: int) -> dict[str, int]:
    """How many of each class both kinds give: as equal as what there is allows, n in all."""
    of_kind = [Counter(record.label for record in records) for records in groups]
    labels = sorted(set().union(*of_kind), key=lambda label: (label not in CLASSES, label))
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


def write_key(key: Key, path: Path) -> None:
    """Write the key as JSON, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(asdict(key), indent=1) + "\n").encode())


def read_key(path: Path) -> Key:
    """Undo write_key. Raise ValueError for a file that holds no key."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Key(values["study"], int(values["size"]), tuple(Card(**card) for card in values["cards"]))
    except FileNotFoundError as error:
        raise ValueError(f"--key {path}: no such file. Give the key.json that `reader make` wrote.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"--key {path}: not a key of a reader study ({error}). Give the key.json.") from error
