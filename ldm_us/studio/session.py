"""What one tab has on the server: a folder of its own with its masks, images and pictures, emptied when it closes."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from threading import Event

from PIL import Image

from ldm_us.files.pictures import save_png
from ldm_us.studio.engine import Made
from ldm_us.synthesis.fields import unpack_mask
from ldm_us.synthesis.folder import COMMAND, finish, open_list, write_sample
from ldm_us.synthesis.plan import Plan

MOST_KEPT = 200  # pictures of a tab
README = """\
Synthetic ultrasound: made by a generative model, not for diagnosis.

dataset/      the pictures in the layout of BUSI, with masks and manifest.jsonl; `python sample.py --verify dataset`
              draws each again and compares
inputs/       the masks and images that the commands name: run them in this folder
commands.txt  a command for each picture
"""


class Session:
    """The files of a tab, and what it waits for."""

    def __init__(self, root: Path):
        self.folder = Path(mkdtemp(dir=root))
        self.inputs: dict[str, Path] = {}  # by SHA-256 of what is in them
        self.made: list[Made] = []
        self.running: set[Event] = set()
        self.count = 0

    def keep(self, kind: str, picture: Image.Image) -> Path:
        """Write a mask or an image that commands name, once: kind_1.png, kind_2.png, ..."""
        digest = hashlib.sha256(f"{kind} {picture.size}".encode() + picture.tobytes()).hexdigest()
        if digest not in self.inputs:
            path = (
                self.folder / "inputs" / f"{kind}_{1 + sum(p.name.startswith(kind) for p in self.inputs.values())}.png"
            )
            path.parent.mkdir(exist_ok=True)
            save_png(picture, path)
            self.inputs[digest] = path
        return self.inputs[digest]

    def input(self, name: object) -> Path:
        """The file of a name that this tab was told; no other file can be named."""
        for path in self.inputs.values():
            if path.name == name:
                return path
        raise ValueError("There is no image to change yet. Open one, or take the last picture.")

    def next_folder(self) -> Path:
        """Where the next picture goes."""
        self.count += 1
        return self.folder / "made" / f"{self.count:04d}"

    def add(self, made: Made) -> None:
        """Keep a picture, and forget the oldest beyond MOST_KEPT."""
        self.made.append(made)
        for old in self.made[:-MOST_KEPT]:
            shutil.rmtree(old.path.parent, ignore_errors=True)
        del self.made[:-MOST_KEPT]

    @contextmanager
    def waiting(self) -> Iterator[Event]:
        """A request of this tab, with what stops it."""
        stop = Event()
        self.running.add(stop)
        try:
            yield stop
        finally:
            self.running.discard(stop)

    def stop(self) -> None:
        """Stop all that this tab waits for."""
        for stop in list(self.running):
            stop.set()

    def close(self) -> None:
        """End with nothing left."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def write_dataset(made: Sequence[Made], out: Path) -> list[Made]:
    """Write pictures as sample.py --layout busi does; -> those that have no class to be filed under."""
    filed = [one for one in made if one.sample.subject.label]
    if not filed:
        raise ValueError("No picture here has a class to be filed under. Draw some by class first.")
    out.mkdir()
    command = filed[0].fields | {"commands": [one.command for one in filed]}
    (out / COMMAND).write_text(json.dumps(command, indent=1), encoding="utf-8")
    plan = Plan(tuple(one.sample.subject for one in filed), False, 0, n=1, layout="busi")
    with open_list(out, 0) as done:
        for sample, one in zip(plan, filed, strict=True):
            mask = unpack_mask(one.fields["mask_bits"], one.size) if "mask_bits" in one.fields else None
            stem = sample.file_name.removesuffix(".png")
            named = replace(sample, mask_name=f"{stem}_mask.png") if mask is not None else sample
            with Image.open(one.path) as picture:
                write_sample(out, done, named, picture.copy(), mask, one.fields, {})
    finish(out, plan)
    return [one for one in made if not one.sample.subject.label]


def zipped(session: Session) -> tuple[bytes, list[Made]]:
    """The gallery of a tab as a ZIP file, and the pictures that it leaves out."""
    folder = Path(mkdtemp(dir=session.folder))
    try:
        left = write_dataset(session.made, folder / "dataset")
        (folder / "inputs").mkdir()
        for path in session.inputs.values():
            shutil.copy(path, folder / "inputs")
        (folder / "commands.txt").write_text("".join(f"{one.command}\n" for one in session.made), encoding="utf-8")
        (folder / "README.txt").write_text(README, encoding="utf-8")
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
        return file.getvalue(), left
    finally:
        shutil.rmtree(folder)
