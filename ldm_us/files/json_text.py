"""JSON that a file brings along, read so that a hostile text ends in one sentence."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """json.loads, but a name that an object has twice and a nesting too deep for the parser are a ValueError too."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("JSON with a name that occurs twice")
    return values
