"""JSON of files that may be a stranger's: read strictly, and made into dataclasses field by field."""

import dataclasses
import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin


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


def from_json(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass from values of JSON; a field that is missing takes its default: its file is older."""
    fields = {each.name: each.type for each in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"the field {name} is not known here: made by a newer version?")
        if not _fits(value, fields[name]):
            raise ValueError(f"the field {name} has no such value: {str(value)[:40]!r}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return type(value) in (int, float)
    return value is None if kind is NoneType else isinstance(value, kind) and not (kind is int and value is True)
