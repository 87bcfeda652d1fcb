"""What a room says, as HTML: a sentence, a fault, a bar of progress, a picture with its command."""

import re
import traceback
from typing import Any

from ldm_us.data.masks.shape import outline
from ldm_us.display.data_urls import data_url
from ldm_us.display.pages import render
from ldm_us.synthesis.serving.engine import Progress, StoppedError
from ldm_us.synthesis.serving.session import Kept

FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s'\"]+/)+")  # of a path, which is the server's own business


def message(text: str, kind: str = "note") -> str:
    """A sentence, as HTML."""
    return render("ldm_us/studio/said.html", text=text, kind=kind, progress=None)


def sentence(error: Exception) -> str:
    """What went wrong, for the page: without the server's folders, and without anything of a fault of our own."""
    if isinstance(error, StoppedError):
        return message("Stopped. What is done stays.")
    if isinstance(error, ValueError | OSError):
        return message(FOLDERS.sub("", str(error)), "error")
    traceback.print_exception(error)
    return message("This failed by a fault of the program; the terminal says where. Other requests go on.", "error")


def card(kept: Kept, title: str = "") -> dict[str, Any]:
    """What a page shows of a picture."""
    made, mask, before = kept.made, kept.made.mask, getattr(kept.made.recipe.begin, "init", None)
    return {
        "title": title or f"{made.sample.subject.label or 'prompt'}, seed {made.sample.seed}",
        "url": data_url(made.path.read_bytes()),
        "outline": None if mask is None else data_url(outline(mask[0].numpy().astype("uint8"))),
        "before": None if before is None else data_url(before.read_bytes()),
        "command": kept.typed,
        "name": made.path.name,
    }


def progress(what: str, moment: Progress, pictures: int = 1) -> str:
    """A bar, and the time that is left of this many pictures."""
    left = "" if moment.seconds is None else f", about {moment.seconds * pictures:.0f} s left"
    text = f"{what} {moment.call} of {moment.total}{left}"
    return render("ldm_us/studio/said.html", text=text, kind="note", progress=moment)
