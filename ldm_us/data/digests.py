"""Digests of images, the same for the same pixels under any name in any lossless format, and of files."""

import json
import os
import time
from collections.abc import Iterable
from hashlib import sha256

from PIL import Image

from ldm_us.data.opening import decode, open_image
from ldm_us.data.records import Record
from ldm_us.data.structure import MaskFile, Structure
from ldm_us.files.atomic import sha256_file
from ldm_us.files.lineage import DIGEST_LENGTH

SETTLED = 2.0  # seconds after a change from which the next one has other times


def pixel_digest(picture: Image.Image) -> bytes:
    """SHA-256 of an image's size and grey pixels."""
    return sha256(f"{picture.size} ".encode() + picture.convert("L").tobytes()).digest()


def lineage_digest(picture: Image.Image) -> bytes:
    """The digest of an image as a lineage keeps it."""
    return pixel_digest(picture)[:DIGEST_LENGTH]


def image_digests(records: Iterable[Record]) -> list[bytes]:
    """The digest of every image, in order, as a lineage keeps it. Opens each once."""
    return [lineage_digest(open_image(record.image)) for record in records]


def hash_of(path: MaskFile) -> str:
    """SHA-256 of a file, which is refused as an image is, or of what is drawn."""
    if isinstance(path, Structure):
        return path.digest()
    try:
        return sha256_file(path)
    except OSError:
        decode(path)
        raise


def stamp(path: MaskFile) -> tuple[int, ...]:
    """Inode, size and both times of a file; nothing where there is none, or a structure of one."""
    try:
        found = () if isinstance(path, Structure) else os.stat(path)
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if found else ()


def signature(path: MaskFile) -> str:
    """What tells a file from any other and from itself before a change; empty where that cannot be told.

    A program may set the time of a file's content, but not that of its last change. Whole seconds are not the time of a
    change: some file systems know no finer ones, and images of disks are given any.
    """
    found = stamp(path)
    settled = found and time.time() - found[-1] / 10**9 > SETTLED and found[-1] % 10**9
    return json.dumps([os.path.abspath(str(path)), *found]) if settled else ""
