"""What one tab has on the server: a folder of its own with its masks, images and pictures, emptied when it closes."""

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Event
from typing import NamedTuple

from PIL import Image

from ldm_us.files.pictures import save_png
from ldm_us.synthesis.serving.engine import Command
from ldm_us.synthesis.serving.single import Made, write_busi

MOST_KEPT = 200  # pictures of a tab
README = """\
Synthetic ultrasound: made by a generative model, not for diagnosis.

dataset/      the pictures in the layout of BUSI, with their masks and manifest.jsonl
inputs/       the masks and images that the commands name: run the commands in this folder
commands.txt  a command for each picture
To draw all again and compare: `python sample.py --verify dataset`; a picture that was made from an image by itself, and
with the --init, --inpaint or --source-mask of its command.
"""


class Kept(NamedTuple):
    """A picture of a tab, and the command that makes it."""

    command: Command
    typed: str  # the same, to be read
    made: Made


class Session:
    """The files of a tab, and what it waits for."""

    def __init__(self, root: Path):
        self.folder = Path(mkdtemp(dir=root))
        self.inputs: dict[str, Path] = {}  # by SHA-256 of what is in them
        self.pictures: list[Kept] = []
        self.running: dict[Event, float] = {}  # with the stops that came before each
        self.stops, self.before = 0.0, 0.0  # so far, and before the request whose turn it is
        self.count = 0

    def keep(self, kind: str, picture: Image.Image) -> Path:
        """Write a mask or an image that commands name, once: kind_1.png, kind_2.png, ..."""
        digest = hashlib.sha256(f"{kind} {picture.size}".encode() + picture.tobytes()).hexdigest()
        if digest not in self.inputs:
            number = 1 + sum(path.name.startswith(kind) for path in self.inputs.values())
            (self.folder / "inputs").mkdir(exist_ok=True)
            save_png(picture, self.folder / "inputs" / f"{kind}_{number}.png")
            self.inputs[digest] = self.folder / "inputs" / f"{kind}_{number}.png"
        return self.inputs[digest]

    def named(self, name: object) -> Path:
        """The file of a name that this tab was told; no other file can be named."""
        for path in self.inputs.values():
            if path.name == name:
                return path
        raise ValueError("There is no image to change yet. Open one, or take the last picture.")

    def next_folder(self) -> Path:
        """Where the next picture goes."""
        self.count += 1
        return self.folder / "made" / f"{self.count:04d}"

    def add(self, picture: Kept) -> None:
        """Keep a picture, and forget the oldest beyond MOST_KEPT."""
        self.pictures.append(picture)
        for old in self.pictures[:-MOST_KEPT]:
            shutil.rmtree(old.made.path.parent, ignore_errors=True)
        del self.pictures[:-MOST_KEPT]

    def last(self) -> Kept:
        """The newest picture."""
        if not self.pictures:
            raise ValueError("There is no picture yet. Draw one in another room first.")
        return self.pictures[-1]

    @contextmanager
    def waiting(self) -> Iterator[Event]:
        """A request of this tab, with what stops it."""
        stop = Event()
        self.running[stop] = self.before
        if self.before < self.stops:  # it came in between
            stop.set()
        try:
            yield stop
        finally:
            del self.running[stop]

    def begins(self, before: float) -> bool:
        """It is the turn of a request that was sent after so many stops: whether it is wanted still."""
        self.before = before
        return before >= self.stops

    def stop(self, stops: float | None = None) -> None:
        """Stop all that this tab waits for; stops: but not what was sent after so many."""
        self.stops = max(self.stops, stops or 0)
        for stop, before in list(self.running.items()):
            if stops is None or before < self.stops:
                stop.set()

    def close(self) -> None:
        """End with nothing left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def zipped(self) -> tuple[bytes, int]:
        """The pictures as a dataset in a ZIP file; and how many have no class to be filed under."""
        with TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            left = write_busi([one.made for one in self.pictures], folder / "dataset")
            shutil.copytree(self.folder / "inputs", folder / "inputs") if self.inputs else None
            commands = "".join(f"{one.typed}\n" for one in self.pictures)
            (folder / "commands.txt").write_text(commands, encoding="utf-8")
            (folder / "README.txt").write_text(README, encoding="utf-8")
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for path in sorted(folder.rglob("*")):
                    archive.write(path, path.relative_to(folder))
            return file.getvalue(), len(left)
