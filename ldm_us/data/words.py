"""The words a model was taught: prompts with their classes, in the entry of each stage that learned from captions.

An entry keeps texts, the most frequent of each class first, as many as fit, and a digest of every prompt: one that the
model was never trained on is known for it. They lie in the lineage because they belong to a stage as its images do, and
go with it through LoRA files, imports and exports. Beside them lies which classes show a structure, where that is not
what a breast has. A stage of before this record is taken for one of breast classes.
"""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_us.config import MASK, PICTURE, ControlConfig
from ldm_us.data.organ import BREAST, UNKNOWN, is_plain
from ldm_us.data.records import Record
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.json_values import parse_json
from ldm_us.files.lineage import DIGEST_LENGTH, Lineage, pack, read_lineage, unpack
from ldm_us.files.stored_tensor import shown

WORDS = "words"  # of an entry; one of an autoencoder has none
TAUGHT_BY = ("unet", "controlnet")  # stages with captions
MOST_PROMPTS, MOST_CHARACTERS = 300, 50_000  # of the texts of an entry
NEAREST = 3  # prompts that a note names
Entries = Sequence[Mapping[str, Any]]
Taught = dict[str, dict[str, int]]  # {class, "" where there is none: {prompt: images}}
OLD: Taught = {label: {BREAST.prompt(label): 0} for label in BREAST.classes}  # how many is not known
OLD_NAMES = ("bus", "breast", "phantom")  # in the names of the folders that old stages were trained on


@dataclass(frozen=True)
class Words:
    """What a model was taught; of each class, the prompts of the last stage that taught it."""

    name: str  # the model's file, for messages
    taught: Taught
    digests: frozenset[bytes]  # of all prompts, of stages before too
    complete: bool  # whether every prompt is among them: none was taught before there was a record
    doubtful: bool = False  # breast classes without a record, and nothing says that it was breast
    shown: Mapping[str, bool | None] = field(default_factory=dict)  # of classes that are not as those of a breast
    hint: tuple[str, ...] = MASK  # what the channels of its ControlNet's hint show

    def shows(self, label: str) -> bool | None:
        """Whether images of a class show a structure; None where nobody said."""
        return self.shown.get(label, BREAST.shows(label))

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of their names."""
        return tuple(sorted(label for label in self.taught if label))

    @property
    def prompts(self) -> list[str]:
        """All texts that are kept, the most frequent first."""
        images: Counter[str] = Counter()
        for of_class in self.taught.values():
            images.update(of_class)
        return sorted(images, key=lambda prompt: (-images[prompt], prompt))

    def prompt(self, label: str, asked: str = "") -> str:
        """The most frequent prompt of a class. Raise ValueError, naming what asked for it, if the model has none."""
        self.check_classes(asked or f"--class {label}")
        if label not in self.classes:
            raise ValueError(
                f"{asked or f'--class {label}'}: unknown to {self.name}. Give one of its classes (--class "
                f"{', '.join(self.classes)}), or another text (--prompt)."
            )
        of_class = self.taught[label]
        return min(of_class, key=lambda prompt: (-of_class[prompt], prompt))

    def check_classes(self, asked: str) -> None:
        """Raise ValueError, naming what asked for them, for a model that has no classes."""
        if not self.classes:
            known = f", such as --prompt {shown(self.prompts[0])!r}" if self.prompts else ""
            raise ValueError(f"{asked}: {self.name} has no classes. Use --prompt{known}.")

    def label_of(self, prompt: str) -> str:
        """The one class that a prompt was taught for; empty for any other text."""
        labels = [label for label, of_class in self.taught.items() if prompt in of_class]
        return labels[0] if len(labels) == 1 else ""

    def notes(self, prompt: str | None, labels: Iterable[str]) -> list[str]:
        """What a user should know of --prompt, or without it of the prompts that these classes have."""
        if prompt is not None:
            if not self.complete or not prompt.strip() or digest_of(prompt) in self.digests:
                return []
            texts = [shown(text) for text in self.prompts[:MOST_PROMPTS]]
            near = "; ".join(map(repr, difflib.get_close_matches(shown(prompt), texts, NEAREST, cutoff=0.0)))
            return [f"{self.name} was never trained on this prompt" + (f". Nearest are: {near}." if near else ".")]
        if self.doubtful:
            return [
                f"{self.name} does not say which words it was taught: --class is taken for one of the breast, as "
                "always. --prompt says anything else."
            ]
        several = [label for label in labels if len(self.taught.get(label, ())) > 1]
        if not several:
            return []
        return [
            f"more than one prompt was taught for {' and '.join(several)}. Taken is the most frequent of a class "
            f"({shown(self.prompt(several[0]))!r}); --info lists them, and --prompt takes any."
        ]

    def lines(self) -> list[str]:
        """For --info: the classes in the order of --balance, and every prompt with its images."""
        lines = [f"classes, in the order of --balance: {', '.join(self.classes) or 'none'}"]
        if self.hint != MASK:
            labels = ", ".join(f"{name} {i}" for i, name in enumerate(self.hint, 1))
            lines.append("--mask is any picture" if self.hint == PICTURE else f"labels of --mask: {labels}")
        for label in sorted(self.taught):
            of_class = sorted(self.taught[label].items(), key=lambda item: (-item[1], item[0]))
            for prompt, images in of_class:
                lines.append(f"  {label or '-':12} {f'{images:,}' if images else '?':>7} images  {shown(prompt, 1000)}")
        others = len(self.digests - {digest_of(prompt) for prompt in self.prompts})
        return lines + ([f"  and {others:,} other prompts, known by their digests alone"] if others else [])


def words_of(path: Path, more: Entries = ()) -> Words:
    """What a model file was taught, and after it, stages that were added to it: a LoRA's, a ControlNet's.

    Raise ValueError for a file that is no model, or whose record is damaged.
    """
    return words_in(str(path), read_metadata(path), more)


def words_in(name: str, metadata: dict[str, str], more: Entries = ()) -> Words:
    """The same from the metadata of a model file."""
    lineage = read_lineage(metadata).entries
    begun = [i for i, entry in enumerate(lineage) if entry.get("stage") == "unet" and entry.get("preset")]
    since = lineage[max(begun, default=0) :]  # a new denoiser knows no word of the one before it
    stages = [entry for entry in (*since, *more) if entry.get("stage") in TAUGHT_BY]
    recorded = [entry for entry in stages if WORDS in entry]
    old = [entry for entry in stages if WORDS not in entry and entry.get("caption_dropout") != 1]
    unnamed = not lineage and metadata.get("stage") != "import"  # saved by somebody's own program
    taught: Taught = OLD if unnamed or old or (lineage and not recorded) else {}
    for entry in recorded:
        new = rows_of(name, entry)
        if new and entry["stage"] == "unet" and not entry.get("lora"):
            taught = {}  # all of the denoiser has learned these since: what a class was before is not sure any more
        taught = taught | new
    breast = lineage and all(any(word in str(entry.get("data")).lower() for word in OLD_NAMES) for entry in lineage)
    complete = bool(recorded) and not unnamed and not old
    doubtful, shown = taught == OLD and not recorded and not breast, dict[str, bool | None]()
    for entry in recorded:
        shown |= entry[WORDS].get("shows", {})
    return Words(name, taught, digests_in(recorded), complete, doubtful, shown, hint_in(metadata))


def hint_in(metadata: dict[str, str]) -> tuple[str, ...]:
    """What the ControlNet of a model file follows, by its config."""
    config = parse_json(metadata.get("config", "{}"))
    return tuple(config.get("control", {}).get("hint", ControlConfig().hint))


def rows_of(name: str, entry: Mapping[str, Any]) -> Taught:
    """The texts of an entry by class. Raise ValueError for what record_words did not write."""
    taught: Taught = {}
    try:
        for prompt, label, images in entry[WORDS]["prompts"]:
            if not isinstance(prompt, str) or type(images) is not int or not (label == "" or is_plain(label)):
                raise ValueError("a prompt, class or number that is none")  # a class is a folder of samples too
            taught.setdefault(label, {})[prompt] = images
        unpack(entry[WORDS].get("new", ""))
        if not set(entry[WORDS].get("shows", {}).values()) <= {True, False, None}:
            raise ValueError("a class that neither shows a structure nor shows none")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}: the words in its lineage are damaged ({error}). Copy the file again.") from error
    return taught


def record_words(records: Iterable[Record], caption_dropout: float, lineage: Lineage) -> dict[str, Any]:
    """What a stage adds to its entry: nothing is taught where every caption is dropped."""
    images, shown = Counter[tuple[str, str]](), dict[str, bool | None]()
    for record in records if caption_dropout < 1 else ():
        images[record.prompt, "" if record.label == UNKNOWN else record.label] += 1
        if record.shows != BREAST.shows(record.label):
            shown[record.label] = record.shows
    rows = sorted(images, key=lambda row: (-images[row], row))
    first = {label: (prompt, label) for prompt, label in reversed(rows)}
    rows.sort(key=lambda row: first[row[1]] != row)  # the most frequent of each class before all others
    kept: list[tuple[str, str, int]] = []
    room = MOST_CHARACTERS
    for prompt, label in rows:
        if len(kept) < MOST_PROMPTS and len(prompt) <= room:
            kept.append((prompt, label, images[prompt, label]))
            room -= len(prompt)
    digests = {digest_of(prompt) for prompt, _ in rows}
    new = pack(digests - digests_in(lineage.entries))
    return {WORDS: {"prompts": kept, "distinct": len(digests), "new": new} | ({"shows": shown} if shown else {})}


def digests_in(entries: Entries) -> frozenset[bytes]:
    """The digests of all prompts that these stages were taught."""
    words = [entry[WORDS] for entry in entries if isinstance(entry.get(WORDS), dict)]
    return frozenset(digest for one in words for digest in unpack(one.get("new", "")))


def digest_of(prompt: str) -> bytes:
    """The digest of a prompt as a lineage keeps it: the same for texts that differ in capitals and spaces alone.

    The tokenizer makes no difference between them either.
    """
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).digest()[:DIGEST_LENGTH]
