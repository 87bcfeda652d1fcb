"""Digests of images: the same pixels have the same one, under any name, in any folder, in any lossless format."""

from collections.abc import Iterable
from hashlib import sha256

from PIL import Image

from ldm_us.data.records import Record, open_image
from ldm_us.files.lineage import DIGEST_LENGTH


def pixel_digest(picture: Image.Image) -> bytes:
    """SHA-256 of an image's size and grey pixels."""
    return sha256(f"{picture.size} ".encode() + picture.convert("L").tobytes()).digest()


def lineage_digest(picture: Image.Image) -> bytes:
    """The digest of an image as a lineage keeps it."""
    return pixel_digest(picture)[:DIGEST_LENGTH]


def image_digests(records: Iterable[Record]) -> list[bytes]:
    """The digest of every image, in order, as a lineage keeps it. Opens each once."""
    return [lineage_digest(open_image(record.image)) for record in records]
