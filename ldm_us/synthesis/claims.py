"""What the fields of a picture claim, as far as it shows without drawing it again.

The digests tell accidents: a field or pixel that was edited later. They have no key, so whoever forges a picture
computes them anew; what --verify draws again is the check that a forger cannot pass.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ldm_us.config import ASPECTS
from ldm_us.data.framing import Frame, fit_by
from ldm_us.data.masks.files import parse_name
from ldm_us.data.records import mask_tensor, union_of_masks
from ldm_us.data.words import Words
from ldm_us.synthesis.fields import DIGEST, SYNTHETIC, fields_sha256, mask_sha256, pixels_sha256, unpack_mask
from ldm_us.synthesis.subjects import masked_subjects
from ldm_us.synthesis.weights import Source

ORIGIN = ("software", "torch", "device")  # no picture of sample.py is without these


def changed_since(picture: Image.Image, text: Mapping[str, str], size: Frame | None) -> list[str]:
    """What was changed after the picture was made, told by the digests alone: by accident, not by a forger.

    size: of its mask; None where the settings do not say it, so that a mask cannot be read.
    """
    problems = []
    if size is not None and ("mask_bits" in text or "mask_sha256" in text):
        try:
            mask = unpack_mask(text.get("mask_bits", ""), size)
            if mask_sha256(mask) != text.get("mask_sha256"):
                problems.append("mask: its bits are not those of mask_sha256")
        except ValueError as error:
            problems.append(f"mask: {error}")
    if not problems and fields_sha256(text) != text[DIGEST]:
        problems.append("settings: a field was changed after the picture was made")
    if pixels_sha256(picture) != text.get("pixels_sha256"):
        problems.append("pixels: they were changed after the picture was made")
    return problems


def untrue_claims(text: Mapping[str, str], words: Words) -> list[str]:
    """What sample.py would not have written, whoever signed it: fields that no pixel depends on."""
    problems = []
    if text.get("synthetic") != SYNTHETIC:
        problems.append(f"synthetic: the field does not say {SYNTHETIC!r}")
    if lacking := [name for name in ORIGIN if not text.get(name)]:
        problems.append(f"origin: no field {' and '.join(lacking)}")
    label, prompted = text.get("class"), words.label_of(text.get("prompt", ""))
    names = (parse_name(Path(name)) for name in text.get("mask", "").split(", "))
    of_masks = {match["label"] for match in names if match is not None}  # in small letters
    # A prompt of one's own leaves the class that the name of the mask tells.
    if label is not None and label != prompted and (prompted or label.lower() not in of_masks):
        problems.append(f"class: {label}, but the prompt is {text.get('prompt', '')!r}")
    return problems


def other_files(text: Mapping[str, str], source: Source, digest: Callable[[Path], str]) -> list[str]:
    """Which of the given files are not those that the picture was made with."""
    problems = []
    made, given = text.get("weights_sha256", ""), digest(source.weights)
    if made != given:
        problems.append(f"weights: made with {made[:12]}, but {source.weights} is {given[:12]}")
    made = text.get("controlnet_sha256", "")
    given = "" if source.controlnet is None else digest(source.controlnet)
    if made != given:
        problems.append(
            f"weights: made with the ControlNet {made[:12] or 'of the weights'}, not {given[:12] or 'that'}"
        )
    made_with = [str(lora["sha256"]) for lora in recorded_loras(text)]
    files = [digest(lora.path) for lora in source.loras]
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


def mask_digests(path: Path, size: Frame, hint: tuple[str, ...]) -> set[str]:
    """SHA-256 of the mask in a file, or of every mask in a folder, at this size, by any rule or as in old versions."""
    found = (union_of_masks(subject.masks) for subject in masked_subjects(path, hint=hint))
    ways = [(union, fit_by(rule, size, *union.size)) for union in found if union is not None for rule in ASPECTS]
    return {mask_sha256(mask_tensor(union, frame, keep)) for union, frame in ways for keep in (True, False)}
