"""Where a model came from: one entry a training stage, oldest first, kept in the metadata of its file."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ldm_us.files.json_text import parse_json


@dataclass(frozen=True)
class Lineage:
    """The stages behind a model, and the SHA-256 of the file that the next stage starts from."""

    entries: tuple[dict[str, Any], ...]
    parent: str = "random"

    def extended(self, entry: dict[str, Any]) -> "Lineage":
        """With one more stage."""
        return dataclasses.replace(self, entries=(*self.entries, entry))

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
