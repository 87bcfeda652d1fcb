"""A folder of samples that is filled by several processes, survives kills, and ends the same whatever happened.

A sample counts once its line is in a list of what is done, which is written after its files. Every start merges these
lists into one; every process then adds to a list of its own; the end merges them into manifest.jsonl.
"""

import dataclasses
import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from ldm_us.config import MASK
from ldm_us.data.organ import BREAST
from ldm_us.data.readers.busi import SAMPLES_INFO
from ldm_us.diffusion.sampling import Sampling
from ldm_us.files.atomic import atomic_file
from ldm_us.files.locks import take_shared, try_exclusive
from ldm_us.files.pictures import save_png
from ldm_us.synthesis.fields import SHOWS, Fields, as_text, mask_is_empty, pixels_sha256
from ldm_us.synthesis.plan import Plan, Sample
from ldm_us.synthesis.recipe import BEGINNINGS, RARE, edited_image, settings_of

COMMAND = "command.json"  # what the folder was begun with
MANIFEST = "manifest.jsonl"  # a line for every sample, once all are there
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk
DONE = "done.jsonl.part"  # what earlier calls have done
LEFTOVER = re.compile(r"\..*\.\d+-[0-9a-f]+\.tmp")  # of a write that was killed


def begin(out: Path, command: Fields, overwrite: bool) -> None:
    """Make the folder ready: begin it, or find out what a call with the same command has done already.

    Raise ValueError for a folder with anything else in it, naming what differs, unless it may be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: exists and is not a folder. Choose another name.")
    check_free(out)
    if overwrite:
        remove_samples(out)
    elif (out / COMMAND).is_file():
        check_command(out, command)
    elif out.exists() and any(not LEFTOVER.fullmatch(path.name) for path in out.iterdir()):
        raise ValueError(f"--out {out}: exists and is not empty. Choose another folder, or add --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    for path in out.rglob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink()
    if not (out / COMMAND).is_file():
        with atomic_file(out / COMMAND) as file:
            file.write((json.dumps(command, indent=1) + "\n").encode())
    merge_lists(out, out / DONE)


def check_free(out: Path) -> None:
    """Raise ValueError where a process is writing into the folder: torchrun, killed, may leave its processes alive."""
    if not (out / COMMAND).is_file():
        return
    with open(out / COMMAND, "r+b") as file:
        if not try_exclusive(file):
            raise ValueError(
                f"--out {out}: another call of sample.py is writing into it. Wait for it, or end all its processes."
            )


@contextmanager
def occupied(out: Path) -> Iterator[None]:
    """Inside, every other call is kept out of the folder; the lock ends with the process, whatever ends that."""
    with open(out / COMMAND, "r+b") as file:
        take_shared(file)
        yield


def remove_samples(out: Path) -> None:
    """Delete what earlier calls have made here and listed, and nothing else."""
    lists = [path for path in [out / MANIFEST, *out.glob("*.jsonl.part")] if path.is_file()]
    (out / COMMAND).unlink(missing_ok=True)
    for path in lists:
        for entry in read_list(path):
            for name in files_of(entry):
                if (out / name).resolve().is_relative_to(out.resolve()):
                    (out / name).unlink(missing_ok=True)
                    with suppress(OSError):  # unless it holds something
                        (out / name).parent.rmdir()  # a class folder without an image is no BUSI
        path.unlink()


def begun_with(out: Path) -> Fields:
    """The command that a folder was begun with, every setting under its own name. Raise ValueError if it is damaged."""
    try:
        return one_by_one(json.loads((out / COMMAND).read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{out / COMMAND}: damaged ({error}). Choose another folder, or add --overwrite.") from error


def check_command(out: Path, command: Fields) -> None:
    """Raise ValueError, naming what differs, unless the folder was begun with this command."""
    before, now = begun_with(out), one_by_one(command)
    if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        listed = "; ".join(f"{key} {_short(before.get(key))}, not {_short(now.get(key))}" for key in differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(
            f"--out {out}: begun by another command ({listed}{more}). Choose another folder, or add --overwrite."
        )


def one_by_one(command: Fields) -> Fields:
    """Every setting under its own name, in commands of before there was a Recipe too."""
    settings = json.loads(json.dumps(settings_of(command)))
    kind, controls = BEGINNINGS[settings["begin"]["from"]], settings["controls"]
    begin = {each.name: each.default for each in dataclasses.fields(kind)} | settings["begin"]
    own = {"settings", *settings["sampling"], *begin, "negative_prompt", "also_control"}
    own |= {f"{name}_sha256" for name in begin} | {"invert", "no_paste", "source_class"}
    rest = {key: value for key, value in command.items() if key not in own}
    sampling = dataclasses.asdict(Sampling()) | settings["sampling"]
    others = RARE | {name: settings[name] for name in (*RARE, "negative_prompt") if name in settings}
    return sampling | others | {"also_control": controls} | begin | rest


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def done_numbers(out: Path) -> set[int]:
    """The numbers of the samples that earlier calls have done."""
    return {entry["number"] for entry in read_list(out / DONE)}


def open_list(out: Path, rank: int) -> TextIO:
    """The list of what one process does in this call."""
    return open(out / f"{rank}.jsonl.part", "w", encoding="utf-8")


def write_sample(
    out: Path,
    done: TextIO,
    sample: Sample,
    picture: Image.Image,
    mask: Image.Image | None,
    fields: Fields,
    strips: Mapping[str, Image.Image],
) -> None:
    """Write the files of one sample, and then its line. The pictures carry the fields.

    strips: pictures of how it came about, by their kind.
    """
    entry: Fields = {"number": sample.number, "file_name": sample.file_name}
    (out / sample.file_name).parent.mkdir(exist_ok=True)
    if sample.mask_name is not None:
        entry["mask_file"] = sample.mask_name
        empty = Image.new("L", picture.size)
        save_png(empty if mask is None else mask, out / sample.mask_name)
    for kind, strip in strips.items():
        name = sample.strip_name(kind)
        entry["strips"] = [*entry.get("strips", []), name]
        (out / name).parent.mkdir(exist_ok=True)
        save_png(strip, out / name, as_text(fields | {SHOWS: f"{kind} of {sample.file_name}"}))
    fields = fields | {"pixels_sha256": pixels_sha256(picture)}
    save_png(picture, out / sample.file_name, as_text(fields))
    done.write(json.dumps(entry | fields) + "\n")
    done.flush()


def merge_lists(out: Path, target: Path) -> None:
    """Merge manifest and lists into `target`, by number, each sample once, and delete the lists. Streams."""
    sources = [path for path in [out / MANIFEST, *sorted(out.glob("*.jsonl.part"))] if path.is_file()]
    last = -1
    with atomic_file(target) as file:
        for entry in heapq.merge(*map(read_list, sources), key=lambda entry: int(entry["number"])):
            # Somebody may have deleted files of a line, or a copy of the folder broken off.
            if entry["number"] > last and all(ends_as_png(out / name) for name in files_of(entry)):
                file.write((json.dumps(entry) + "\n").encode())
                last = entry["number"]
    for path in sources:
        if path not in (target, out / MANIFEST):
            path.unlink()


def finish(out: Path, plan: Plan) -> None:
    """Make the manifest of what all processes have done and, in the layout of BUSI, the families.

    Two samples of one mask, or of one edited image, are no independent images: read_busi gives them one group, which no
    split tears apart. The names of all families are in memory: some 300 bytes a sample.
    """
    merge_lists(out, out / MANIFEST)
    numbers, families = 0, dict[str, list[str]]()
    for entry in read_list(out / MANIFEST):
        numbers += 1
        if plan.layout == "busi" and (shared := shared_source(entry)):
            families.setdefault(shared, []).append(Path(entry["file_name"]).name)
    assert numbers == plan.total, "a process left before its share was done"
    if plan.layout == "busi":
        others = {s.label: s.prompt for s in plan.subjects if s.prompt != BREAST.prompt(s.label)}
        shows = {s.label: s.shows for s in plan.subjects if s.shows != BREAST.shows(s.label)}
        info = {
            "set": hashlib.sha256((out / COMMAND).read_bytes()).hexdigest()[:12],
            "families": [names for names in families.values() if len(names) > 1],
            **{key: table for key, table in (("prompts", others), ("shows", shows)) if table},  # else it is a breast
        } | ({} if plan.hint == MASK else {"hint": plan.hint})
        with atomic_file(out / SAMPLES_INFO) as file:
            file.write((json.dumps(info, indent=1) + "\n").encode())


def shared_source(entry: Fields) -> str | None:
    """What makes samples one family: the image they edit, else hints they follow, else the mask of their lesion."""
    if (edited := edited_image(entry)) is not None:
        return edited
    if controls := settings_of(entry)["controls"]:
        return json.dumps([str(control["hint"]["sha256"]) for control in controls])
    return None if mask_is_empty(entry) else entry.get("mask_sha256")


def read_list(path: Path) -> Iterator[Fields]:
    """The whole lines of a list; a kill may have torn the last one. Raise ValueError for a line that is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    entry = json.loads(line)
                    names = [entry["file_name"], entry.get("mask_file", ""), *entry.get("strips", [])]
                    if not isinstance(entry["number"], int) or not all(isinstance(name, str) for name in names):
                        raise TypeError("its number or the names of its files")
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{path}, line {number}: damaged ({error!r}). Delete this line: the same command then makes "
                        "its sample again."
                    ) from error
                yield entry


def ends_as_png(path: Path) -> bool:
    """Whether a file is there and ends with the last chunk of a PNG."""
    if not path.is_file() or path.stat().st_size < len(PNG_END):
        return False
    with open(path, "rb") as file:
        file.seek(-len(PNG_END), os.SEEK_END)
        return file.read() == PNG_END


def files_of(entry: Fields) -> list[str]:
    """Image, mask and strips of a line."""
    return [entry[key] for key in ("file_name", "mask_file") if key in entry] + entry.get("strips", [])
