"""What each room of the page does, in texts and numbers: the page only shows it.

Every drawing room yields pairs of HTML: what there is to say, and the pictures so far (None: as they were).
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_us.data.masks.opened import open_bytes
from ldm_us.data.masks.shape import Sums, canvas_picture, described, mask_picture, moved, outline
from ldm_us.display.data_urls import MOST_BYTES, data_url, drawn_mask, unpack
from ldm_us.display.pages import render
from ldm_us.studio.said import card, message, progress, sentence
from ldm_us.synthesis.serving.commands import asked, number
from ldm_us.synthesis.serving.engine import Command, Engine, Progress
from ldm_us.synthesis.serving.inside import look, variants
from ldm_us.synthesis.serving.session import Kept, Session

Said = tuple[str, str | None]


class Rooms:
    """All rooms of all tabs, around one model."""

    def __init__(self, engine: Engine, root: Path):
        self.engine, self.root = engine, root
        self.sessions: dict[str, Session] = {}

    def session(self, tab: str) -> Session:
        """The files of a tab."""
        if tab not in self.sessions:
            self.sessions[tab] = Session(self.root)
        return self.sessions[tab]

    def close(self, *tabs: str) -> None:
        """Free all that tabs had, once the thread that writes into their folders has stopped."""
        closed = [self.sessions.pop(tab) for tab in tabs if tab in self.sessions]
        for session in closed:
            session.stop()
        for session in closed:
            self.engine.pool.submit(session.close).result()

    def stop(self, tab: str, stops: Any = None) -> str:
        """Stop what a tab waits for. stops: how often it was asked to, this time included; later requests go on."""
        self.session(tab).stop(None if stops is None else number("Stops", stops, 0, 1e9))
        return message("Stopped. What is done stays.")

    def pressed(self, tab: str, stops: Any, answers: Iterator[Said]) -> Iterator[Said]:
        """A request that was sent after so many stops: nothing of it where a later stop came before its turn."""
        if self.session(tab).begins(number("Stops", stops, -1, 1e9)):
            yield from answers

    def unmasked(self) -> str:
        """Why nothing follows a mask here."""
        if self.engine.model.controlnet is not None:
            return message(
                "The ControlNet of this model follows pictures, which are not drawn: `sample.py --mask FILE`."
            )
        return message("This model has no ControlNet, which follows masks. Train one with `train.py controlnet`.")

    def estimate(self, n: Any, steps: Any, size: Any = "") -> str:
        """How long a request may take, by the last picture."""
        try:
            wanted = asked("", "any", n, 0, steps, False)
            sized = self.engine.asks(self.engine.size_of(size), False)
        except ValueError as error:
            return sentence(error)
        if self.engine.seconds is None:
            return message("Time: known after the first picture.")
        seconds = wanted.n * self.engine.seconds * self.engine.cost(wanted.commands(*sized)[0][1])
        return message(f"Time: about {max(seconds, 1):.0f} s.")

    def make(self, tab: str, size: Any, *common: Any) -> Iterator[Said]:
        """Pictures by class or prompt."""
        engine = self.engine
        return self.pictures(tab, lambda _: asked(*common).commands(*engine.asks(engine.size_of(size), False)))

    def drawn(self, sent: str) -> tuple[dict[str, Any], Sums]:
        """What a canvas tells, and the mask on it."""
        state = json.loads(sent)
        return state, drawn_mask(state["mask"], self.engine.check_size, len(self.engine.labels) or 1)

    def draw(self, tab: str, sent: str, scale: Any, *common: Any) -> Iterator[Said]:
        """Pictures that follow the mask of the canvas."""

        def commands(session: Session) -> list[tuple[str, Command]]:
            _, drawn = self.drawn(sent)
            mask = session.keep("mask", mask_picture(drawn, self.engine.hint))
            weight = number("The weight of the mask", scale, 0, 10)
            more = () if weight == self.engine.model.config.control.scale else ("--control-scale", f"{weight:g}")
            return asked(*common).commands("--mask", mask, *more, *self.engine.asks(drawn.shape[::-1], True))

        return self.pictures(tab, commands)

    def change(self, tab: str, sent: str, *rest: Any) -> Iterator[Said]:
        """The opened image, changed in one of three ways."""

        def commands(session: Session) -> list[tuple[str, Command]]:
            (way, *move, strength), wanted = rest[:5], asked(*rest[5:])
            state, drawn = self.drawn(sent)
            init = ("--init", session.named(state["image"]), *self.engine.asks(drawn.shape[::-1], True))
            part = ("--strength", f"{number('Strength', strength, 0, 1):g}")
            if way == "class":
                return wanted.commands(*init, *part)
            if way == "region":
                return wanted.commands(*init, "--inpaint", session.keep("region", mask_picture(drawn > 0)))
            right, down, factor = movement(move)
            before = ("--source-mask", session.keep("lesion", mask_picture(drawn, self.engine.hint)))
            after = session.keep("lesion", mask_picture(moved(drawn, right, down, factor), self.engine.hint))
            grown = right == down == 0 and factor >= 1  # then the lesion as it was would hold it: docs/history.md
            edit = (*init, "--invert", *(() if grown else before), "--mask", after, *part)
            return wanted.commands(*edit)[:1]  # an inversion draws no noise: one picture

        return self.pictures(tab, commands)

    def pictures(self, tab: str, commands: Callable[[Session], list[tuple[str, Command]]]) -> Iterator[Said]:
        """Draw the pictures of commands, one by one. Those with a name are for a look: the gallery has them not."""
        session, cards = self.session(tab), list[dict[str, Any]]()
        yield message("Waiting for the model."), ""
        try:
            todo = commands(session)
            with session.waiting() as stop:
                for i, (name, command) in enumerate(todo):
                    for moment in self.engine.draw(command, session.next_folder(), stop):
                        if isinstance(moment, Progress):
                            yield progress(f"Picture {i + 1} of {len(todo)}, step", moment, len(todo) - i), None
                            continue
                        kept = Kept(command, self.engine.shown(command), moment)
                        cards.append(card(kept, name))
                        if not name:
                            session.add(kept)
                        text = " ".join(["Done." if i + 1 == len(todo) else "", *moment.notes])
                        yield message(text), render("ldm_us/studio/cards.html", cards=cards)
        except Exception as error:  # a fault in one request ends no other
            yield sentence(error), None

    def compare(self, tab: str) -> Iterator[Said]:
        """The last picture at other guidance, and at other weights of its mask."""
        return self.pictures(tab, lambda session: variants(session.last().command))

    def look(self, tab: str) -> Iterator[Said]:
        """What the last picture passed through."""
        session = self.session(tab)
        try:
            command = session.last().command
            with session.waiting() as stop:
                for moment in self.engine.run(lambda: look(self.engine, command), command, stop):
                    if isinstance(moment, Progress):
                        yield progress("Step", moment), None
                    else:
                        yield message("Done."), render("ldm_us/studio/inside.html", seen=moment, url=data_url)
        except Exception as error:
            yield sentence(error), None

    def open(self, tab: str, sent: str) -> tuple[str, str]:
        """A file that was opened: what there is to say, and what the canvas is to show, as JSON."""
        try:
            (state, drawn), session = self.drawn(sent), self.session(tab)
            file, board = state["file"], drawn.shape[::-1]
            name, mask = str(file["name"])[:80], file["kind"] == "mask"
            if file.get("size", 0) > MOST_BYTES:
                raise ValueError(f"{name} is larger than {MOST_BYTES >> 20} MB. Make it smaller.")
            own = self.engine.framing.rule == "bucket" and not (mask and state["image"])  # else the size of the canvas
            fit, hint = partial(self.engine.fit, None if own else board), (self.engine.hint if mask else None)
            picture, notes = open_bytes(name, unpack(file["data"]), fit, hint)
            held = {"mask": data_url(picture), "size": picture.size} if mask else self.background(session, picture)
            return message(" ".join(notes) or "Opened."), json.dumps(held)
        except Exception as error:
            return sentence(error), "{}"

    def take(self, tab: str) -> tuple[str, str]:
        """The last picture as the image to change, with the mask that it followed."""
        try:
            made = self.session(tab).last().made
        except ValueError as error:
            return sentence(error), "{}"
        with Image.open(made.path) as picture:
            found = self.background(self.session(tab), picture.convert("L"))
        if made.mask is not None:
            found["mask"] = data_url(canvas_picture(made.mask[0].numpy(), len(made.hint)))
        return message("This is the last picture."), json.dumps(found)

    def background(self, session: Session, picture: Image.Image) -> dict[str, Any]:
        """An image behind the canvas, kept under a name that a command can give."""
        return {"background": data_url(picture), "image": session.keep("image", picture).name, "size": picture.size}

    def shaped(self, size: Any) -> tuple[str, str]:
        """A canvas of another size."""
        try:
            return message("What is drawn keeps its place."), json.dumps({"size": self.engine.size_of(size)})
        except ValueError as error:
            return sentence(error), "{}"

    def stroke(self, sent: str, *move: Any) -> tuple[str, str]:
        """Something was drawn: its area and pieces with a link that saves it, and where a movement takes it."""
        try:
            _, mask = self.drawn(sent)
            goes = move[1:] if move and move[0] == "move" else None
            target = {"outline": "" if goes is None else data_url(outline(moved(mask, *movement(goes))))}
            text = described(mask, self.engine.labels or ("region",))
            url = data_url(mask_picture(mask, self.engine.hint))
            return render("ldm_us/studio/mask.html", text=text, url=url), json.dumps(target)
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
