"""Settings of pictures and folders from before they were one JSON field: a field each, in a PNG as text."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ldm_us.data.organ import BREAST
from ldm_us.diffusion.sampling import Sampling

FILES = ("init", "inpaint", "source_mask")  # those that name a file; its SHA-256 stands in a field of its own


def settings_of_old_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as Recipe.to_dict writes them now."""
    sampling = {each.name: _value(fields[each.name]) for each in dataclasses.fields(Sampling) if each.name in fields}
    if "guidance_interval" in fields:
        sampling["guidance_interval"] = [float(word) for word in str(fields["guidance_interval"]).split()]
    begin: dict[str, Any] = {"from": "noise"}
    files = {
        name: {"file": fields[name], "sha256": fields.get(f"{name}_sha256", "")} for name in FILES if name in fields
    }
    if "init" in fields:
        kind = "region" if "inpaint" in fields else "inversion" if "invert" in fields else "image"
        names = ("strength", "resample", "iterations")
        begin = {"from": kind} | files | {name: _value(fields[name]) for name in names if name in fields}
        begin |= {"paste": False} if "no_paste" in fields else {}
        begin |= {"source_prompt": str(fields["source_prompt"])} if "source_prompt" in fields else {}
        begin |= {"source_prompt": BREAST.prompt(str(fields["source_class"]))} if "source_class" in fields else {}
    return {
        "sampling": sampling,
        "negative_prompt": str(fields.get("negative_prompt", "")),
        "begin": begin,
        "controls": [
            {
                "path": {"file": each["file"], "sha256": each["sha256"]},
                "hint": {"file": each["hint"], "sha256": each["hint_sha256"]},
                "scale": each["scale"],
            }
            for each in _value(fields.get("also_control", []))
        ],
    }


def _value(value: Any) -> Any:
    """The value of an old field: a text of a PNG holds what str() or JSON made of it."""
    if not isinstance(value, str):
        return value
    try:
        return {"True": True, "False": False}[value] if value in ("True", "False") else json.loads(value)
    except ValueError:
        return value
