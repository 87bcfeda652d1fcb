"""Stand-ins for readers: rules and a network rate the images of a study, so that all of it is tried before experts are.

They are no experts, and say so in the name under which they answer. Each sees the images as the sheet shows them, and
learns what real and generated ones look like from images that are not in the study, nor of a family with one that is.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ldm_us.data.audit.statistics import depth_profile, high_passed
from ldm_us.data.records import Record
from ldm_us.evaluation.reader.deck import RATINGS, Card, Key, prepare
from ldm_us.evaluation.realism.crops import CROP, score_crops, train_network
from ldm_us.evaluation.realism.speckle import correlation_width
from ldm_us.evaluation.realism.two_sample import STEPS
from ldm_us.files.atomic import sha256_file, write_text
from ldm_us.files.pictures import to_picture

LEAST = 20  # images of each kind outside of the study
MOST = 200  # of each kind that are looked at

Rule = Callable[[np.ndarray], float]  # an image (s, s), uint8 -> a number


def axial_grain(grey: np.ndarray) -> float:
    """Width of the autocorrelation along the beam, in pixels."""
    return correlation_width(high_passed(grey), len(grey))


def darkness_at_depth(grey: np.ndarray) -> float:
    """Mean grey level of the last band of the depth."""
    return float(depth_profile(grey)[-1])


RULES: dict[str, Rule] = {"the axial grain": axial_grain, "the darkness at depth": darkness_at_depth}


def stand_in_answers(
    key: Key,
    real: Sequence[Record],
    generated: Sequence[Record],
    seed: int,
    steps: int = STEPS,
    on_step: Callable[[], object] | None = None,
) -> dict[str, list[int]]:
    """The ratings of each stand-in, by its name, in the order of the key; real, generated: the sets of the study.

    Raise ValueError for too few images outside of the study, and for an image of it that is another now.
    """
    deck = [shown(card_file(card), key) for card in key.cards]
    others = [outside(key, *pair) for pair in ((real, "--real"), (generated, "--generated"))]
    known_real, known_generated = ([shown(record.image, key) for record in records] for records in others)
    answers = {}
    for name, rule in RULES.items():
        values = [np.array([rule(grey) for grey in greys]) for greys in (deck, known_real, known_generated)]
        answers[f"a rule, no human: {name}"] = rated(*values)
    if key.sides[-1] >= CROP:
        first, second = (torch.from_numpy(np.stack(greys[::2])) for greys in (known_generated, known_real))
        network = train_network(first, second, steps, seed, on_step)  # above 0 for real ones
        values = [mean_scores(network, greys) for greys in (deck, known_real[1::2], known_generated[1::2])]
        answers["a network, no human: the two-sample test's"] = rated(*values)
    return answers


def card_file(card: Card) -> Path:
    """The file of an image of the study, unchanged. Raise ValueError where it is not."""
    path = Path(card.file)
    if not path.is_file() or sha256_file(path) != card.sha256:
        raise ValueError(f"{path}: missing, or another file than when the study was made. Put it back.")
    return path


def shown(path: Path, key: Key) -> np.ndarray:
    """An image as the sheet shows it, (s, s), uint8."""
    return np.asarray(to_picture(prepare(path, key.sides)))


def outside(key: Key, records: Sequence[Record], option: str) -> list[Record]:
    """Images of a set that no reader sees, nor any of their families, evenly spread. Raise ValueError for too few."""
    files, digests = {card.file for card in key.cards}, {card.sha256 for card in key.cards}
    inside = {str(r.image) for r in records if str(r.image) in files or sha256_file(r.image) in digests}
    families = {record.group for record in records if str(record.image) in inside}
    left = [record for record in records if record.group not in families]
    if len(left) < LEAST:
        raise ValueError(
            f"{option}: {len(left)} images are neither in the study nor of a family with one that is, and stand-ins "
            f"learn from {LEAST} or more. Give a larger set, or make a smaller study."
        )
    step = max(1, -(-len(left) // MOST))
    return left[::step]


def mean_scores(network: torch.nn.Sequential, greys: Sequence[np.ndarray]) -> np.ndarray:
    """The mean logit of the crops of each image; NaN for an image that is all black."""
    scores, of_image = score_crops(network, torch.from_numpy(np.stack(greys)))
    counts = np.bincount(of_image, minlength=len(greys))
    sums = np.bincount(of_image, scores, minlength=len(greys))
    return np.divide(sums, counts, out=np.full(len(greys), np.nan), where=counts > 0)


def rated(deck: np.ndarray, known_real: np.ndarray, known_generated: np.ndarray) -> list[int]:
    """Ratings by where a number lies between the medians of generated (0) and of real images (1), in quarters."""
    low, high = np.nanmedian(known_generated), np.nanmedian(known_real)
    place = np.nan_to_num((deck - low) / (high - low), nan=0.5) if high != low else np.full(len(deck), 0.5)
    quarters = np.linspace(0, 1, len(RATINGS) + 1)[1:-1]
    return [1 + int(quarter) for quarter in np.searchsorted(quarters, place)]


def write_answers(key: Key, answers: dict[str, list[int]], out: Path) -> list[Path]:
    """Write a file for each stand-in, as the sheet saves those of a reader."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / file_name(number) for number in range(len(answers))]
    for path, (reader, ratings) in zip(paths, answers.items(), strict=True):
        given = [{"rating": rating} for rating in ratings]
        write_text(path, json.dumps({"study": key.study, "reader": reader, "answers": given}, indent=1) + "\n")
    return paths


def file_name(number: int) -> str:
    """Of the answers of a stand-in."""
    return f"stand_in_{number + 1}.json"
