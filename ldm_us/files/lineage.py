"""Where a model came from: one entry a training stage, oldest first, kept in the metadata of its file.

An entry names the images of its stage by digests of their pixels, each in the first stage that was trained on it alone:
stages on the same images take no more room than one. Entries older than that have none, and a hash of all images.
`sample.py --info` says it in words, with what the file holds.
"""

import base64
import dataclasses
import json
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import PARTS, load_model, read_metadata
from ldm_us.files.safetensors_header import parse_json

SHOWN_FIRST = ("steps", "images_per_step", "learning_rate", "seed", "data", "images", "data_sha256", "parent_sha256")
DIGESTS = "new_images"  # of an entry: base64 of the sorted digests of images that no stage before was trained on
DIGEST_LENGTH = 8  # bytes


@dataclass(frozen=True)
class Lineage:
    """The stages behind a model, and the SHA-256 of the file that the next stage starts from."""

    entries: tuple[dict[str, Any], ...]
    parent: str = "random"

    def extended(self, entry: dict[str, Any], images: Set[bytes] | None = None) -> "Lineage":
        """With one more stage, and the digests of the images that it was trained on."""
        if images is not None:
            entry = entry | {"images": len(images), DIGESTS: pack(images - self.trained_on().keys())}
        return dataclasses.replace(self, entries=(*self.entries, entry))

    def trained_on(self) -> dict[bytes, dict[str, Any]]:
        """{digest of an image: the first stage that was trained on it}, of the stages that keep digests."""
        return {digest: entry for entry in self.entries for digest in unpack(entry.get(DIGESTS, ""))}

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file."""
        return {"lineage": json.dumps(self.entries)}


def read_lineage(metadata: dict[str, str]) -> Lineage:
    """The lineage in a model file's metadata; empty where there is none. Raise ValueError for anything else."""
    try:
        entries = parse_json(metadata.get("lineage", "[]"))
    except ValueError as error:
        raise ValueError(f"the lineage in a model file is damaged ({error}). Copy the file again.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("the lineage in a model file is not a list of stages. Copy the file again.")
    return Lineage(tuple(entries))


def pack(digests: Iterable[bytes]) -> str:
    """Digests as one text, which does not depend on their order."""
    return base64.b64encode(b"".join(sorted(digests))).decode()


def unpack(text: Any) -> set[bytes]:
    """Undo pack. Raise ValueError for what it did not write."""
    try:
        together = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the digests of images are damaged ({error}). Copy the file again.") from error
    return {together[i : i + DIGEST_LENGTH] for i in range(0, len(together), DIGEST_LENGTH)}


def describe_model(path: Path) -> str:
    """Size, parts, what the denoiser predicts, and a paragraph for each stage of training, oldest first.

    Raise ValueError, in one sentence, for a file that load_model refuses.
    """
    model, metadata = load_model(path, parts=()), read_metadata(path)
    config = model.config
    lines = [
        f"{path}  sha256 {sha256_file(path)}",
        f"{config.name}, {config.image_size} pixels, predicts {config.schedule.prediction}, made by ldm_us "
        f"{metadata.get('ldm_us', 'of unknown version')}",
    ]
    for part in PARTS:
        network = getattr(model, part)
        if network is not None:
            lines.append(f"  {part:10} {sum(value.numel() for value in network.state_dict().values()):13,} parameters")
    lines += [f"  imported from {source['file']}  sha256 {source['sha256']}" for source in imported_files(metadata)]
    entries = read_lineage(metadata).entries
    if not entries:
        lines.append("not trained here: no lineage")
    for number, entry in enumerate(entries, start=1):
        lines.append(f"stage {number}: {entry.get('stage')}")
        others = [name for name in entry if name not in (*SHOWN_FIRST, "stage", DIGESTS)]
        shown = [name for name in SHOWN_FIRST if name in entry]
        for name in shown + [name for name in others if entry[name] not in (None, False, 0)]:
            value = entry[name]
            lines.append(f"  {name:16} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return "\n".join(lines)


def imported_files(metadata: dict[str, str]) -> list[dict[str, Any]]:
    """The original files that an import read; none where the metadata name none that can be read."""
    try:
        found = parse_json(metadata.get("sources", "[]"))
    except ValueError:
        return []
    found = found if isinstance(found, list) else []
    return [source for source in found if isinstance(source, dict) and {"file", "sha256"} <= source.keys()]
