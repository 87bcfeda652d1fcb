"""The options that edited a picture, from its fields, so that --verify can draw it again."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from ldm_us.files.atomic import sha256_file
from ldm_us.synthesis.added_controls import added_again, parse_added
from ldm_us.synthesis.edit_options import add_edit_options, edit_defaults

FILES = ("init", "inpaint", "source_mask")  # options that name a file; its fields hold name and SHA-256


def recorded_edits(text: Mapping[str, str], given: argparse.Namespace) -> argparse.Namespace | None:
    """The options that edited a picture, from its fields; None for a plain sample. `given` names the files anew.

    Raise ValueError for a file that is not given, or is another one, and for a field that is no value.
    """
    used = {name: text[name] for name in edit_defaults() if name in text}
    if not used:
        return None
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_edit_options(parser)
    plain = [name for name in used if name not in (*FILES, "also_control")]
    try:
        edits = parser.parse_args([word for name in plain for word in as_words(name, used[name])])
    except argparse.ArgumentError as error:
        raise ValueError(f"its fields hold no options of sample.py ({error})") from error
    for name in FILES:
        if name in used:
            setattr(edits, name, same_file(name, text, getattr(given, name)))
    if "also_control" in used:
        try:
            recorded = json.loads(used["also_control"])
            edits.also_control = added_again(recorded, parse_added(given.also_control))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("the field also_control names no ControlNets") from error
    return edits


def as_words(name: str, value: str) -> list[str]:
    """An option of the command line, from its field."""
    option = f"--{name.replace('_', '-')}"
    if name in ("no_paste", "invert", "guess"):
        return [option]
    return [option, *value.split()] if name == "guidance_interval" else [f"{option}={value}"]


def same_file(name: str, text: Mapping[str, str], given: Path | None) -> Path:
    """The file of an option, if it is the one that the fields name. Raise ValueError where it is not."""
    option, digest = f"--{name.replace('_', '-')}", text.get(f"{name}_sha256", "")
    if given is None:
        raise ValueError(f"made with {option} {text[name]} ({digest[:12]}): give that file with {option}")
    found = sha256_file(given)
    if found != digest:
        raise ValueError(f"made with {option} {text[name]} ({digest[:12]}), but {given} is {found[:12]}")
    return given
