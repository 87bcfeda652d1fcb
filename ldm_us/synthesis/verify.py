"""Draw a sample again from the fields of its PNG, and say whether every pixel is the same or else what differs."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_us.atomic import sha256_file
from ldm_us.data.records import open_image
from ldm_us.pictures import to_picture
from ldm_us.synthesis.added_controls import load_added, parse_added
from ldm_us.synthesis.drawing import Settings, Wanted, draw_images, settings_from_text
from ldm_us.synthesis.edits import draw_edits
from ldm_us.synthesis.fields import DIGEST, fields_sha256, mask_sha256, origin_fields, pixels_sha256, unpack_mask
from ldm_us.synthesis.recorded_edits import recorded_edits
from ldm_us.synthesis.watermark import add_watermark, can_read_watermarks, has_watermark, watermark_version
from ldm_us.synthesis.weights import ScaledLoRA, Source, load_sampler


class Verdict(NamedTuple):
    """Whether a picture is what its fields say, and one sentence about it."""

    equal: bool
    sentence: str


def verify(path: Path, source: Source, device: str, given: argparse.Namespace) -> Verdict:
    """Compare a sample with what its fields give on this machine, pixel by pixel.

    `source` names the files to draw with, `given` those of an edit (--init, --inpaint, ...); everything else, as the
    scales of LoRAs, is read from the fields. Raise ValueError for a file that is no picture, and where the extra that a
    watermark needs is missing.
    """
    picture = open_image(path)
    text = {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
    if DIGEST not in text:
        return Verdict(False, f"{path}: no fields of sample.py in it, so nothing can be compared{_seen_mark(picture)}.")
    problems = changed_since(picture, text) + other_files(text, source)
    try:
        edits = recorded_edits(text, given)
    except ValueError as error:
        problems.append(f"settings: {error}")
    if problems:
        return Verdict(False, f"{path}: {'; '.join(problems)}.")
    if "watermark" in text:
        watermark_version()  # without the extra it cannot be drawn
    try:
        settings = settings_from_text(text)
        mask = unpack_mask(text["mask_bits"], settings.size) if "mask_bits" in text else None
        again = draw_again(text, settings, mask, source, device, edits)
    except (ValueError, KeyError) as error:
        return Verdict(False, f"{path}: settings: {error}, so it cannot be drawn again.")
    return compare(path, picture, again, text, settings.exact, device)


def changed_since(picture: Image.Image, text: Mapping[str, str]) -> list[str]:
    """What was changed after the picture was made, told by the digests alone."""
    problems = []
    if "mask_bits" in text or "mask_sha256" in text:
        try:
            mask = unpack_mask(text.get("mask_bits", ""), int(text.get("size", "0")))
            if mask_sha256(mask) != text.get("mask_sha256"):
                problems.append("mask: its bits are not those of mask_sha256")
        except ValueError as error:
            problems.append(f"mask: {error}")
    if not problems and fields_sha256(text) != text[DIGEST]:
        problems.append("settings: a field was changed after the picture was made")
    if pixels_sha256(picture) != text.get("pixels_sha256"):
        problems.append("pixels: they were changed after the picture was made")
    return problems


def other_files(text: Mapping[str, str], source: Source) -> list[str]:
    """Which of the given files are not those that the picture was made with."""
    problems = []
    made, given = text.get("weights_sha256", ""), sha256_file(source.weights)
    if made != given:
        problems.append(f"weights: made with {made[:12]}, but {source.weights} is {given[:12]}")
    made = text.get("controlnet_sha256", "")
    given = "" if source.controlnet is None else sha256_file(source.controlnet)
    if made != given:
        problems.append(
            f"weights: made with the ControlNet {made[:12] or 'of the weights'}, not {given[:12] or 'that'}"
        )
    made_with = [str(lora["sha256"]) for lora in recorded_loras(text)]
    files = [sha256_file(lora.path) for lora in source.loras]
    if sorted(made_with) != sorted(files):
        listed = ", ".join(digest[:12] for digest in made_with) or "no LoRA"
        problems.append(f"weights: made with {listed}, but --lora gives {', '.join(f[:12] for f in files) or 'none'}")
    return problems


def recorded_loras(text: Mapping[str, str]) -> Sequence[dict[str, str]]:
    """File, sha256 and scale of every LoRA, in the order they were merged."""
    try:
        return [lora for lora in json.loads(text.get("loras", "[]")) if {"sha256", "scale"} <= lora.keys()]
    except (ValueError, TypeError, AttributeError):
        return []


def draw_again(
    text: Mapping[str, str],
    settings: Settings,
    mask: Tensor | None,
    source: Source,
    device: str,
    edits: argparse.Namespace | None,
) -> Image.Image:
    """The picture that the fields describe."""
    paths = {sha256_file(lora.path): lora.path for lora in source.loras}
    loras = [ScaledLoRA(paths[lora["sha256"]], float(lora["scale"])) for lora in recorded_loras(text)]
    model, _ = load_sampler(source._replace(loras=loras), device, warn=lambda note: None)
    wanted = [Wanted(text["prompt"], int(text["seed"]), mask)]
    if edits is None:
        (x,) = draw_images(model, wanted, settings)
    else:
        added = load_added(parse_added(edits.also_control), model, device, settings.size)
        edits.weights = source.weights
        (x,) = draw_edits(edits, model, wanted, settings, added)
    again = to_picture(x.mean(dim=0, keepdim=True))
    return add_watermark(again) if "watermark" in text else again


def compare(
    path: Path, picture: Image.Image, again: Image.Image, text: Mapping[str, str], exact: bool, device: str
) -> Verdict:
    """Pixel by pixel; where they differ, with what may be the reason."""
    if picture.size != again.size or picture.mode != again.mode:
        return Verdict(False, f"{path}: pixels: {picture.mode} {picture.size}, not {again.mode} {again.size}.")
    apart = np.abs(np.asarray(picture, dtype=int) - np.asarray(again, dtype=int))
    if not apart.any():
        mark = ", with its watermark" if "watermark" in text else ""
        return Verdict(True, f"{path}: all {apart.size} pixels are those of its seed, settings and weights{mark}.")
    if not exact and apart.max() <= 1:
        return Verdict(True, f"{path}: all pixels within the rounding of a batch: it was made with --fast.")
    here = origin_fields(device)
    if "watermark" in text:
        here["watermark"] = watermark_version()
    other = [f"{key} {text.get(key, 'none')}, here {here[key]}" for key in here if text.get(key) != here[key]]
    reason = f"made with {'; '.join(other)}" if other else "its fields tell no reason: they are not what made it"
    differ = f"{int((apart > 0).sum())} of {apart.size} pixels differ, by up to {apart.max()}"
    return Verdict(False, f"{path}: {differ}: {reason}.")


def _seen_mark(picture: Image.Image) -> str:
    if not can_read_watermarks():
        return " (the extra `watermark` would look for an invisible mark)"
    return ", but its watermark says that it is synthetic" if has_watermark(picture) else ", and it has no watermark"
