"""What a sample says of itself: fields of its PNG and of its line in the manifest, enough to draw it again."""

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ldm_us
from ldm_us.data.framing import Size, as_frame
from ldm_us.data.structure import file_of
from ldm_us.runtime.machine import device_kind, libraries
from ldm_us.synthesis.subjects import Subject

Fields = dict[str, Any]  # values of JSON
SYNTHETIC = "made by a generative model, not for diagnosis"
DIGEST = "fields_sha256"  # over all other fields
LARGEST = 1 << 24  # bytes of a mask, of a bit a pixel
SHOWS = "shows"  # of a picture about samples, which is none itself: what it shows


def origin_fields(device: str | torch.device) -> Fields:
    """The software, its libraries and the kind of device; bits are promised for one kind alone."""
    return {
        "synthetic": SYNTHETIC,
        "software": f"ldm_us {ldm_us.__version__}",
        "torch": str(torch.__version__),
        "libraries": libraries(),
        "device": device_kind(device),
    }


def subject_fields(subject: Subject, seed: int, mask: Tensor | None) -> Fields:
    """What one sample has for itself; mask (1, H, W) as the ControlNet saw it."""
    fields: Fields = {"prompt": subject.prompt, "seed": seed}
    if subject.label:
        fields["class"] = subject.label
    if mask is not None:
        fields["mask"] = ", ".join(dict.fromkeys(file_of(mask).name for mask in subject.masks))
        fields["mask_sha256"] = mask_sha256(mask)
        fields["mask_bits"] = pack_mask(mask)
    return fields


def as_text(fields: Fields) -> dict[str, str]:
    """The fields as a PNG holds them, with a digest that tells when one of them was changed by accident.

    The digest has no key: who forges a picture computes it anew. What cannot be forged is what --verify draws again.
    """
    text = {key: json.dumps(value) if isinstance(value, list | dict) else str(value) for key, value in fields.items()}
    return text | {DIGEST: fields_sha256(text)}


def fields_sha256(text: Mapping[str, str]) -> str:
    """SHA-256 of all fields but the digest itself, in the order of their names."""
    rest = {key: value for key, value in text.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def pixels_sha256(picture: Image.Image) -> str:
    """SHA-256 of mode, size and pixels, whatever the file's compression."""
    header = f"{picture.mode} {picture.width} {picture.height} ".encode()
    return hashlib.sha256(header + picture.tobytes()).hexdigest()


def mask_sha256(mask: Tensor) -> str:
    """SHA-256 of a mask (1, H, W), one byte a pixel."""
    return hashlib.sha256(mask.to(torch.uint8).numpy().tobytes()).hexdigest()


def mask_is_empty(entry: Mapping[str, Any]) -> bool:
    """Whether a sample followed a mask in which nothing is drawn; such masks make no samples alike."""
    if "mask_bits" not in entry:
        return entry.get("class") == "normal"  # of old samples, all of a breast
    try:
        return not any(zlib.decompressobj().decompress(base64.b64decode(entry["mask_bits"]), LARGEST))
    except (binascii.Error, zlib.error, TypeError, ValueError):
        return False


def pack_mask(mask: Tensor) -> str:
    """(1, H, W) -> base64 of zlib of its bits, row by row, or of bytes if one is above 1: 200 characters at 128x128."""
    values = mask.numpy().astype(np.uint8)
    return base64.b64encode(zlib.compress((values if values.max() > 1 else np.packbits(values)).tobytes(), 9)).decode()


def unpack_mask(text: str, size: Size) -> Tensor:
    """Undo pack_mask: (1, H, W) float32. Raise ValueError for a text that holds no such mask."""
    frame = as_frame(size)
    room = frame.height * frame.width
    try:
        bits = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), room + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"no mask can be read from mask_bits ({error})") from error
    values = np.frombuffer(bits, np.uint8)
    if len(values) == (room + 7) // 8:
        values = np.unpackbits(values, count=room)
    if len(values) != room:
        raise ValueError(f"mask_bits holds no mask of {frame} pixels")
    return torch.from_numpy(values.reshape(1, *frame.size).astype(np.float32))
