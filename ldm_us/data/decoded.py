"""What the files of a dataset decode to, kept in a folder: a start of training opens only what is new.

A file is hashed again unless its path, inode, size and both times are those of a kept hash. All else is kept under
these hashes, the size, and the code and libraries that decode: what is found is right, and what is not is decoded.
Without a folder everything is kept in this process alone, and files are not hashed.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor
from tqdm import tqdm

from ldm_us.data.altered_copies import SIDE
from ldm_us.data.digests import hash_of, lineage_digest, signature, stamp
from ldm_us.data.framing import Frame, Framing
from ldm_us.data.mask_rule import looks_inverted
from ldm_us.data.opening import open_image
from ldm_us.data.records import (
    Record,
    image_tensor,
    lesions_cut_off,
    mask_tensor,
    open_pair,
    small_lesions,
    to_uint8,
    union_of_masks,
)
from ldm_us.data.structure import MaskFile, Structure
from ldm_us.files.rows import Rows, as_tensor
from ldm_us.runtime.entry import note

TOGETHER = 64  # files whose values are written at once
CODE = (  # that decides what files decode to
    *("decoded.py", "digests.py", "framing.py", "mask_rule.py", "medical.py", "opening.py", "records.py"),
    *("regions.py", "structure.py"),
)
Facts = NDArray[np.void]
Index = NDArray[np.int64]


class Decoded:
    """The images and masks of records in the sizes of a Framing, a side for squares, each opened once."""

    def __init__(self, folder: Path | None, framing: int | Framing, with_pixels: bool = False, levels: bool = False):
        """folder: where all is kept. with_pixels: whole images too, as the stage vae sees them.

        levels: a mask is more than 0 and 1, see union_of_masks.
        """
        self.folder, self.framing = folder, Framing(framing) if isinstance(framing, int) else framing
        self.with_pixels, self.levels = with_pixels, levels
        size = self.framing.side  # no size has more pixels than the square: all lie in rows that have room for that
        pixels, bits = (size * size * with_pixels,), (size * size if levels else -(-size * size // 8),)
        shape, small = ("shape", "i4", 2), ("small", "u1", (SIDE, SIDE))
        self.of_image = np.dtype([("digest", "u1", 8), ("key", "u1", 32), shape, small, ("pixels", "u1", pixels)])
        about = [("share", "f8"), ("inverted", "?"), ("lost", "i4"), ("cut", "f8")]
        self.of_masks = np.dtype([shape, *about, ("bits", "u1", bits)])
        kind = f"{decoder()[:16]}-{'-'.join(map(str, self.framing))}"
        self.hashes = Rows(folder and folder / "files", 32)
        self.images = Rows(folder and folder / f"images-{kind}{'-pixels' * with_pixels}", self.of_image.itemsize)
        self.masks = Rows(folder and folder / f"masks-{kind}{'-levels' * levels}", self.of_masks.itemsize)
        self.told = False  # that the folder cannot be written
        self.names: dict[MaskFile, str] = {}  # hashes of files, as this process has used them
        self.stamps: dict[MaskFile, tuple[int, ...]] = {}  # of these files, when they were hashed

    def frames_of(self, records: Sequence[Record]) -> list[Frame]:
        """The size of each image. ValueError: one does not open."""
        table, at = self.image_facts(records)
        return self.frames(table["shape"][at])

    def frames(self, shapes: NDArray[np.int32]) -> list[Frame]:
        """The sizes that pictures of these widths and heights (n, 2) have here."""
        return [self.framing.frame(width, height) for width, height in shapes.tolist()]

    def image_facts(self, records: Sequence[Record]) -> tuple[Facts, Index]:
        """A table of images, and the row in it of each record. ValueError: an image does not open."""
        keys = self.file_names([record.image for record in records])
        at = self.rows_of(self.images, keys, lambda i: self.decode_image(records[i]), "opening images")
        return self.images.rows.view(self.of_image)[:, 0], at

    def mask_facts(self, records: Sequence[Record]) -> tuple[Facts, Index]:
        """A table of masks, OR-ed for each record, and the row in it of each. ValueError: a mask cannot be read."""
        names = iter(self.file_names([mask for record in records for mask in record.masks]))
        keys = [" ".join(next(names) + channel_of(mask) for mask in record.masks) for record in records]
        at = self.rows_of(self.masks, keys, lambda i: self.decode_masks(records[i]), "masks")
        return self.masks.rows.view(self.of_masks)[:, 0], at

    def rows_of(self, kept: Rows, keys: Sequence[str], opened: Callable[[int], Facts], said: str) -> Index:
        """The row of each key, decoded and kept where it is not there."""
        if (kept.find(keys) < 0).any():
            kept.load()  # another process may have decoded them
        missing = {keys[i]: i for i in np.flatnonzero(kept.find(keys) < 0).tolist()}
        names = list(missing)
        with tqdm(total=len(names), desc=said, unit="image", delay=1) as shown:
            for together in (names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)):
                rows = [opened(missing[name]).view(np.uint8) for name in together]
                kept.add(together, np.stack(rows))
                shown.update(len(together))
        kept.load()
        self.tell_refused(kept)
        at = kept.find(keys)
        if (at < 0).any():
            raise ValueError(f"{self.folder}: what was written there is gone. Start again; it is decoded anew.")
        return at

    def tell_refused(self, kept: Rows) -> None:
        """Say once that a folder is for reading alone."""
        if kept.refused is not None and not self.told:
            self.told = True
            note(f"{kept.refused.filename} cannot be written ({kept.refused.strerror}): this process alone keeps it.")

    def check_unchanged(self, paths: Sequence[MaskFile]) -> None:
        """Refuse files that are not those that were hashed: their pixels would be kept under a wrong name for good."""
        for path in paths:
            if path in self.stamps and self.stamps[path] != stamp(path):
                raise ValueError(f"{path}: it was changed while it was read. Start again when nothing writes to it.")

    def decode_image(self, record: Record) -> Facts:
        """One row of the table of images."""
        picture = open_image(record.image)
        grey = to_uint8(image_tensor(picture, self.framing.frame(*picture.size))[:1]).numpy()
        row = np.zeros(1, self.of_image)
        row["digest"] = list(lineage_digest(picture))
        row["key"] = list(hashlib.sha256(grey.tobytes()).digest())
        row["shape"], row["small"] = picture.size, small_image(picture)
        pixels = grey.reshape(-1)[: row["pixels"].size]
        row["pixels"][:, : pixels.size] = pixels
        self.check_unchanged([record.image])
        return row

    def decode_masks(self, record: Record) -> Facts:
        """One row of the table of masks; zeros where there is none."""
        union, row = union_of_masks(record.masks), np.zeros(1, self.of_masks)
        if union is not None:
            frame, drawn = self.framing.frame(*union.size), np.asarray(union) > 0
            row["shape"], row["share"], row["cut"] = union.size, drawn.mean(), lesions_cut_off(union, frame)
            row["inverted"], row["lost"] = looks_inverted(union), small_lesions(union, frame)
            mask = mask_tensor(union, frame).numpy()
            bits = mask.astype(np.uint8).reshape(-1) if self.levels else np.packbits(mask > 0.5)
            row["bits"][:, : bits.size] = bits
        self.check_unchanged(record.masks)
        return row

    def file_names(self, paths: Sequence[MaskFile]) -> list[str]:
        """What stands for the content of each file: its hash where it is kept, in this process its path."""
        return list(map(str, paths)) if self.folder is None else self.file_hashes(paths)

    def file_hashes(self, paths: Sequence[MaskFile]) -> list[str]:
        """SHA-256 of each file, as hexadecimal: the same for the life of this process."""
        asked = list(dict.fromkeys(path for path in paths if path not in self.names))
        signatures = list(map(signature, asked)) if self.folder is not None else [""] * len(asked)
        if (self.hashes.find(signatures) < 0).any():
            self.hashes.load()
        at, new = self.hashes.find(signatures), {}
        for i, path in enumerate(tqdm(asked, desc="hashing files", unit="file", delay=1)):
            self.stamps[path] = stamp(path)
            self.names[path] = self.hashes.rows[at[i]].tobytes().hex() if at[i] >= 0 else hash_of(path)
            if at[i] < 0 and signatures[i] and signatures[i] == signature(path):
                new[signatures[i]] = list(bytes.fromhex(self.names[path]))
        if new:
            self.hashes.add(list(new), np.array(list(new.values()), np.uint8))
            self.tell_refused(self.hashes)
        return [self.names[path] for path in paths]


@cache
def decoder(more: tuple[str, ...] = ()) -> str:
    """A hash of the code, and more beside it, and of the libraries that decode: others may see other pixels."""
    code = [Path(__file__).with_name(name).read_bytes() for name in (*CODE, *more)]
    libraries = [(name, features.version(name)) for name in features.get_supported()]
    return hashlib.sha256(b"".join([*code, json.dumps([PIL.__version__, libraries]).encode()])).hexdigest()


def small_image(picture: Image.Image) -> NDArray[np.uint8]:
    """What near-duplicates are searched in: (96, 96) grey."""
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def channel_of(mask: MaskFile) -> str:
    """What tells a mask in a channel of its own from the same file as a plain mask."""
    return f"={mask.value}" if isinstance(mask, Structure) and mask.value != 255 else ""


class Pictures:
    """Pictures, bytes or bits, out of a table that processes share: any index takes a copy of those, all of one size.

    frames: the size of each; a row has room for the largest.
    """

    def __init__(self, table: NDArray[np.uint8], at: Index, frames: Sequence[Frame], bits: bool):
        self.table, self.at, self.bits = as_tensor(table), torch.from_numpy(at), bits
        self.sizes = torch.tensor([frame.size for frame in frames]).view(-1, 2)  # (n, 2)

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """The pictures (..., 1, H, W) of an index: uint8, or bool of bits."""
        at, sizes = self.at[index], self.sizes[index].view(-1, 2)
        height, width = (sizes if len(sizes) else self.sizes)[0].tolist()
        assert bool((sizes == sizes[:1]).all()), "pictures of several sizes are no tensor"
        rows = self.table[at]
        if self.bits:
            rows = torch.from_numpy(np.unpackbits(rows.numpy(), axis=-1, count=height * width).view(np.bool_))
        return rows[..., : height * width].reshape(*at.shape, 1, height, width)

    def of(self, index: Tensor) -> "Pictures":
        """Some of the pictures, out of the same table."""
        chosen = copy.copy(self)
        chosen.at, chosen.sizes = self.at[index], self.sizes[index]
        return chosen

    def any(self) -> Tensor:
        """Which pictures are not all 0: (n,) bool."""
        return torch.cat([self.table[at].any(dim=1).bool() for at in self.at.split(TOGETHER)])


def check_pairs(records: Sequence[Record], decoded: Decoded) -> None:
    """Refuse masks of another size than their image, in the words of open_pair."""
    (images, of_image), (masks, of_masks) = decoded.image_facts(records), decoded.mask_facts(records)
    other = (images["shape"][of_image] != masks["shape"][of_masks]).any(axis=1)
    for i in np.flatnonzero(other).tolist():
        open_pair(records[i])  # without masks it has nothing to refuse
