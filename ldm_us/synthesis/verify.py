"""Draw a sample again from the fields of its PNG, and say whether every pixel is the same or else what differs."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_us.data.records import open_image
from ldm_us.diffusion.controls import ControlTerm
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.atomic import sha256_file
from ldm_us.files.pictures import to_picture
from ldm_us.synthesis.added_controls import load_added, parse_added
from ldm_us.synthesis.claims import changed_since, mask_digests, other_files, recorded_loras, untrue_claims
from ldm_us.synthesis.drawing import Settings, Wanted, draw_images, settings_from_text
from ldm_us.synthesis.edits import draw_samples
from ldm_us.synthesis.fields import DIGEST, SHOWS, origin_fields, unpack_mask
from ldm_us.synthesis.recorded_edits import FILES, recorded_edits
from ldm_us.synthesis.watermark import add_watermark, can_read_watermarks, has_watermark, watermark_version
from ldm_us.synthesis.weights import ScaledLoRA, Source, load_sampler

# Share of the pixels that rounding may move by one grey level. Measured with us128, a batch of four against one by one,
# on a CPU: at most 0.00006 in fp32 and 0.087 in bf16. A GPU convolves in TF32, whose rounding is nearer to bf16's.
FINE, COARSE = 0.01, 0.25
OWN = {"verify", "weights", "controlnet", "lora", "device", "mask", "also_control", *FILES}  # options it reads


class Verdict(NamedTuple):
    """Whether a picture is what its fields say, and one sentence about it."""

    equal: bool
    sentence: str


def load_all(
    source: Source, device: str, added: tuple[tuple[str, ...], ...], size: int
) -> tuple[LatentDiffusion, list[ControlTerm]]:
    """The model, and the terms of these --also-control."""
    model, _ = load_sampler(source, device, warn=lambda note: None)
    return model, load_added(parse_added(added), model, device, size)


@dataclass(frozen=True)
class Means:
    """What there is to draw with, read once for all pictures of a folder."""

    source: Source  # the scales of its LoRAs are read from the fields
    device: str
    given: argparse.Namespace  # the files of an edit: --init, --inpaint, ...
    digest: Callable[[Path], str] = field(default_factory=lambda: cache(sha256_file))
    masks: Callable[[Path, int], set[str]] = field(default_factory=lambda: cache(mask_digests))
    load: Callable[..., tuple[LatentDiffusion, list[ControlTerm]]] = field(
        default_factory=lambda: lru_cache(maxsize=1)(load_all)
    )


def verify(path: Path, source: Source, device: str, given: argparse.Namespace) -> Verdict:
    """Compare a sample with what its fields give on this machine, pixel by pixel.

    `source` names the files to draw with, `given` those of an edit and --mask; everything else is read from the fields.
    Raise ValueError for a file that is no picture, and where the extra that a watermark needs is missing.
    """
    return verify_picture(path, Means(source, device, given))


def verify_picture(path: Path, means: Means) -> Verdict:
    """`verify` with means that may serve for more pictures."""
    picture = open_image(path)
    text = fields_of(picture)
    if DIGEST not in text:
        return Verdict(False, f"{path}: no fields of sample.py in it, so nothing can be compared{_seen_mark(picture)}.")
    if SHOWS in text:
        return Verdict(False, f"{path}: it is no sample and shows {text[SHOWS]}. Verify the samples themselves.")
    problems = changed_since(picture, text) + untrue_claims(text) + other_files(text, means.source, means.digest)
    edits = None
    try:
        edits = recorded_edits(text, means.given)
        if not problems and means.given.mask is not None:
            digests = means.masks(means.given.mask, int(text["size"]))
            if text.get("mask_sha256") not in digests:
                problems.append(f"mask: made with {text.get('mask', 'none')}, which is not --mask {means.given.mask}")
    except (ValueError, KeyError) as error:
        problems.append(f"settings: {error}")
    if problems:
        return Verdict(False, f"{path}: {'; '.join(problems)}.")
    if "watermark" in text:
        watermark_version()  # without the extra it cannot be drawn
    try:
        settings = settings_from_text(text)
        mask = unpack_mask(text["mask_bits"], settings.size) if "mask_bits" in text else None
        again = draw_again(text, settings, mask, means, edits)
    except (ValueError, KeyError) as error:
        return Verdict(False, f"{path}: settings: {error}, so it cannot be drawn again.")
    return compare(path, picture, again, text, means.device)


def fields_of(picture: Image.Image) -> dict[str, str]:
    """The text fields of a PNG."""
    return {str(key): value for key, value in picture.info.items() if isinstance(value, str)}


def draw_again(
    text: Mapping[str, str], settings: Settings, mask: Tensor | None, means: Means, edits: argparse.Namespace | None
) -> Image.Image:
    """The picture that the fields describe."""
    paths = {means.digest(lora.path): lora.path for lora in means.source.loras}
    loras = tuple(ScaledLoRA(paths[lora["sha256"]], float(lora["scale"])) for lora in recorded_loras(text))
    added = () if edits is None else tuple(map(tuple, edits.also_control))
    model, terms = means.load(means.source._replace(loras=loras), means.device, added, settings.size)
    wanted = [Wanted(text["prompt"], int(text["seed"]), mask)]
    if edits is None:
        (x,) = draw_images(model, wanted, settings)
    else:
        edits.weights = means.source.weights
        ((x, _),) = draw_samples(edits, model, wanted, settings, terms)
    again = to_picture(x.mean(dim=0, keepdim=True))
    return add_watermark(again) if "watermark" in text else again


def compare(path: Path, picture: Image.Image, again: Image.Image, text: Mapping[str, str], device: str) -> Verdict:
    """Pixel by pixel; where they differ, with what may be the reason."""
    if picture.size != again.size or picture.mode != again.mode:
        return Verdict(False, f"{path}: pixels: {picture.mode} {picture.size}, not {again.mode} {again.size}.")
    apart = np.abs(np.asarray(picture, dtype=int) - np.asarray(again, dtype=int))
    if not apart.any():
        return Verdict(True, f"{path}: all {apart.size} pixels are those of its {made_of(text)}.")
    differ = f"{int((apart > 0).sum())} of {apart.size} pixels differ, by up to {apart.max()}"
    fine = text["precision"] == "fp32" and text["device"].startswith("cpu")
    rounded = bool(apart.max() <= 1 and (apart > 0).mean() <= (FINE if fine else COARSE))
    if text["exact"] == "False" and rounded:
        return Verdict(True, f"{path}: {differ}: the rounding of a batch, for it was made with --fast.")
    return Verdict(False, f"{path}: {differ}: {reason(text, rounded, device)}.")


def made_of(text: Mapping[str, str]) -> str:
    """Name all that the pixels were drawn from."""
    files = "".join(f", --{name.replace('_', '-')} {text[name]}" for name in FILES if name in text)
    pasted = "; outside --inpaint they are those of --init" if "inpaint" in text and "no_paste" not in text else ""
    return f"seed, settings and weights{files}{', with its watermark' if 'watermark' in text else ''}{pasted}"


def reason(text: Mapping[str, str], rounded: bool, device: str) -> str:
    """Why pixels may differ: what the fields say of another machine, else what they cannot tell."""
    here = origin_fields(device)
    if "watermark" in text:
        here["watermark"] = watermark_version()
    other = [f"{key} {text.get(key, 'none')}, here {here[key]}" for key in here if text.get(key) != here[key]]
    if other:
        return f"made with {'; '.join(other)}{', whose rounding is likely all there is to it' if rounded else ''}"
    if rounded:
        return (
            "the fields name no other machine or software, but so little is likely the rounding of another processor "
            "or library, or else a change with a new digest"
        )
    return (
        "the fields name no other machine or software. Either they are not what made these pixels, or something that "
        "they do not hold, as a driver, chose other kernels"
    )


def check_verify_options(options: argparse.Namespace, defaults: Mapping[str, object]) -> None:
    """Raise ValueError for options beside --verify that it would not look at."""
    for name, value in vars(options).items():
        if name not in OWN and value != defaults[name]:
            option = "class" if name == "labels" else name.replace("_", "-")
            raise ValueError(
                f"--{option} beside --verify does nothing: a picture is drawn again as its fields say. Leave it away."
            )


def _seen_mark(picture: Image.Image) -> str:
    if not can_read_watermarks():
        return " (the extra `watermark` would look for an invisible mark)"
    return ", but its watermark says that it is synthetic" if has_watermark(picture) else ", and it has no watermark"
