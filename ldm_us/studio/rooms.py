"""What each room of the page does, in texts and numbers: the page only shows it.

Every drawing room yields pairs of HTML: what there is to say, and the pictures so far (None: as they were).
"""

import json
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_us.data.masks.opened import open_bytes
from ldm_us.data.masks.shape import described, mask_picture, moved, outline
from ldm_us.data.regions import Mask
from ldm_us.display.pages import render
from ldm_us.studio.commands import asked, number
from ldm_us.studio.session import Kept, Session
from ldm_us.studio.urls import data_url, drawn_mask, unpack
from ldm_us.synthesis.fields import unpack_mask
from ldm_us.synthesis.serving.engine import Command, Engine, Progress, StoppedError, shown
from ldm_us.synthesis.serving.inside import Inside, look, variants
from ldm_us.synthesis.serving.single import Made

FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s'\"]+/)+")  # of a path, which is the server's own business
Said = tuple[str, str | None]


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


class Rooms:
    """All rooms of all tabs, around one model."""

    def __init__(self, engine: Engine, root: Path):
        self.engine, self.root = engine, root
        self.sessions: dict[str, Session] = {}

    def session(self, tab: str) -> Session:
        """The files of a tab."""
        return self.sessions.setdefault(tab, Session(self.root)) if tab not in self.sessions else self.sessions[tab]

    def close(self, tab: str) -> None:
        """Free all that a tab had."""
        if tab in self.sessions:
            self.sessions.pop(tab).close()

    def stop(self, tab: str) -> str:
        """Stop what a tab waits for."""
        self.session(tab).stop()
        return message("Stopped. What is done stays.")

    def unmasked(self) -> str:
        """Why nothing follows a mask here."""
        name = Path(self.engine.words.name).name
        return message(
            f"{name} has no ControlNet to follow a mask. Train one: python train.py controlnet --weights {name}"
        )

    def estimate(self, n: Any, steps: Any) -> str:
        """How long a request may take, by the last picture."""
        try:
            wanted = asked("", "any", n, 0, steps, False)
        except ValueError as error:
            return sentence(error)
        if self.engine.seconds is None:
            return message("Time: known after the first picture.")
        seconds = wanted.n * self.engine.seconds * self.engine.cost(wanted.commands()[0])
        return message(f"Time: about {max(seconds, 1):.0f} s.")

    def make(self, tab: str, *common: Any) -> Iterator[Said]:
        """Pictures by class or prompt."""
        return self.pictures(tab, lambda session: asked(*common).commands())

    def draw(self, tab: str, sent: str, scale: Any, *common: Any) -> Iterator[Said]:
        """Pictures that follow the mask of the canvas."""

        def commands(session: Session) -> list[Command]:
            mask = session.keep("mask", mask_picture(drawn_mask(json.loads(sent)["mask"], self.engine.size)))
            weight = number("The weight of the mask", scale, 0, 10)
            return asked(*common).commands("--mask", mask, "--control-scale", weight)

        return self.pictures(tab, commands)

    def change(self, tab: str, sent: str, way: str, strength: Any, *rest: Any) -> Iterator[Said]:
        """The opened image, changed in one of three ways."""

        def commands(session: Session) -> list[Command]:
            state, move, wanted = json.loads(sent), rest[:3], asked(*rest[3:])
            image, part = session.named(state["image"]), number("Strength", strength, 0, 1)
            if way == "class":
                return wanted.commands("--init", image, "--strength", part)
            drawn = drawn_mask(state["mask"], self.engine.size)
            if way == "region":
                return wanted.commands("--init", image, "--inpaint", session.keep("region", mask_picture(drawn)))
            before = session.keep("lesion", mask_picture(drawn))
            after = session.keep("lesion", mask_picture(moved(drawn, *movement(move))))
            edit = ("--init", image, "--invert", "--source-mask", before, "--mask", after, "--strength", part)
            return wanted.commands(*edit)[:1]  # an inversion draws no noise: one picture

        return self.pictures(tab, commands)

    def pictures(self, tab: str, commands: Callable[[Session], list[Command]]) -> Iterator[Said]:
        """Draw the pictures of commands, one by one."""
        session, cards = self.session(tab), list[dict[str, Any]]()
        yield message("Waiting for the model."), ""
        try:
            todo = commands(session)
            with session.waiting() as stop:
                for i, words in enumerate(todo):
                    for moment in self.engine.draw(words, session.next_folder(), stop):
                        if isinstance(moment, Progress):
                            left = None if moment.seconds is None else moment.seconds * (len(todo) - i)
                            yield progress(f"Picture {i + 1} of {len(todo)}, step", moment, left), None
                            continue
                        cards.append(card(session.add(words, moment)))
                        yield message(" ".join(["Done." * (i + 1 == len(todo)), *moment.notes])), cards_page(cards)
        except Exception as error:
            yield sentence(error), None

    def look(self, tab: str) -> Iterator[Said]:
        """What the last picture passed through."""
        yield from self.of_last(tab, lambda words: [("", words)], inside=True)

    def compare(self, tab: str) -> Iterator[Said]:
        """The last picture at other guidance, and at other weights of its mask."""
        yield from self.of_last(tab, lambda words: variants(words, "--mask" in words), inside=False)

    def of_last(self, tab: str, ways: Callable[[Command], list[tuple[str, Command]]], inside: bool) -> Iterator[Said]:
        """Draw the last picture again, in ways that have names."""
        session, cards = self.session(tab), list[dict[str, Any]]()
        try:
            if not session.pictures:
                raise ValueError("There is no picture yet. Draw one in another room first.")
            with session.waiting() as stop:
                for name, words in ways(session.pictures[-1].command):
                    job = (lambda: look(self.engine, words)) if inside else None  # noqa: B023
                    run = (
                        self.engine.run(job, words, stop)
                        if job
                        else self.engine.draw(words, session.next_folder(), stop)
                    )
                    for moment in run:
                        if isinstance(moment, Progress):
                            yield progress(name or "Step", moment, moment.seconds), None
                        elif isinstance(moment, Inside):
                            yield message("Done."), render("ldm_us/studio/inside.html", seen=moment, url=data_url)
                        else:
                            cards.append(card(Kept(words, moment), name))
                            yield message("Done."), cards_page(cards)
        except Exception as error:
            yield sentence(error), None

    def open(self, tab: str, sent: str) -> tuple[str, str]:
        """A file that was opened: what there is to say, and what the canvas is to show, as JSON."""
        try:
            file, session = json.loads(sent)["file"], self.session(tab)
            mask = file["kind"] == "mask"
            picture, notes = open_bytes(str(file["name"])[:80], unpack(file["data"]), self.engine.size, mask)
            shown_there = {"mask": data_url(picture)} if mask else self.background(session, picture)
            return message(" ".join(notes) or "Opened."), json.dumps(shown_there)
        except Exception as error:
            return sentence(error), "{}"

    def take(self, tab: str) -> tuple[str, str]:
        """The last picture as the image to change, with the mask that it followed."""
        session = self.session(tab)
        if not session.pictures:
            return message("There is no picture yet. Draw one in another room first.", "error"), "{}"
        made = session.pictures[-1].made
        with Image.open(made.path) as picture:
            found = self.background(session, picture.convert("L"))
        mask = mask_of(made)
        return message("This is the last picture."), json.dumps(
            found | ({} if mask is None else {"mask": data_url(mask_picture(mask))})
        )

    def background(self, session: Session, picture: Image.Image) -> dict[str, str]:
        """An image behind the canvas, kept under a name that a command can give."""
        return {"background": data_url(picture), "image": session.keep("image", picture).name}

    def stroke(self, sent: str, *move: Any) -> tuple[str, str]:
        """Something was drawn: its area and pieces with a link that saves it, and where a movement takes it."""
        try:
            mask = drawn_mask(json.loads(sent)["mask"], self.engine.size)
            target = {} if not move else {"outline": data_url(outline(moved(mask, *movement(move))))}
            text = described(mask, (self.engine.labels or ("region",))[0])
            return render("ldm_us/studio/mask.html", text=text, url=data_url(mask_picture(mask))), json.dumps(target)
        except Exception as error:
            return sentence(error), "{}"

    def dataset(self, tab: str) -> str:
        """A link to the pictures of this tab as a ZIP file."""
        try:
            session = self.session(tab)
            content, left = session.zipped()
            url, n = data_url(content, "application/zip"), len(session.pictures) - left
            return render("ldm_us/studio/dataset.html", url=url, n=n, left=left)
        except Exception as error:
            return sentence(error)


def movement(move: Any) -> tuple[float, float, float]:
    """Shares of the picture to the right and down, and a factor of size, from a list of three numbers in per cent."""
    right, down, factor = (number("A movement", value, -200, 400) for value in move)
    return right / 100, down / 100, max(factor, 1) / 100


def mask_of(made: Made) -> Mask | None:
    """The mask (h, w) that a picture followed."""
    bits = made.fields.get("mask_bits")
    return None if bits is None else unpack_mask(bits, made.recipe.size)[0].numpy() > 0


def card(kept: Kept, title: str = "") -> dict[str, Any]:
    """What a page shows of a picture."""
    made, mask, before = kept.made, mask_of(kept.made), getattr(kept.made.recipe.begin, "init", None)
    return {
        "title": title or f"{made.sample.subject.label or 'prompt'}, seed {made.sample.seed}",
        "url": data_url(made.path.read_bytes()),
        "outline": None if mask is None else data_url(outline(mask)),
        "before": None if before is None else data_url(before.read_bytes()),
        "command": shown(kept.command),
        "name": made.path.name,
    }


def cards_page(cards: list[dict[str, Any]]) -> str:
    """Pictures with their commands."""
    return render("ldm_us/studio/cards.html", cards=cards)


def progress(what: str, moment: Progress, seconds: float | None) -> str:
    """A bar."""
    left = "" if seconds is None else f", about {seconds:.0f} s left"
    text = f"{what} {moment.call} of {moment.total}{left}"
    return render("ldm_us/studio/said.html", text=text, kind="note", progress=moment)
