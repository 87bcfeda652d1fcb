"""Where a model came from: one entry a training stage, oldest first, kept in the metadata of its file.

An entry names the images of its stage by digests of their pixels, each in the first stage that was trained on it alone:
stages on the same images take no more room than one. Entries older than that have none, and a hash of all images.
`sample.py --info` says it in words (ldm_us/synthesis/info.py), and data/words.py keeps there what was taught.
"""

import base64
import dataclasses
import json
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from ldm_us.files.json_values import parse_json

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

    @property
    def aspect(self) -> str:
        """How the images of the last stage came into its size; one that does not say it squashed them to a square."""
        return str(self.entries[-1].get("aspect") or "squash") if self.entries else "squash"

    @property
    def usual_size(self) -> str | None:
        """The WIDTHxHEIGHT that most images of the last stage had; None where it does not say."""
        said = self.entries[-1].get("sizes") if self.entries else None
        counts = {size: n for size, n in said.items() if isinstance(n, int)} if isinstance(said, dict) else {}
        return max(counts, key=lambda size: counts[size], default=None)

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


def imported_files(metadata: dict[str, str]) -> list[dict[str, Any]]:
    """The original files that an import read; none where the metadata name none that can be read."""
    try:
        found = parse_json(metadata.get("sources", "[]"))
    except ValueError:
        return []
    found = found if isinstance(found, list) else []
    return [source for source in found if isinstance(source, dict) and {"file", "sha256"} <= source.keys()]
