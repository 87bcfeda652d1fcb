"""The model and the one thread that draws with it: requests wait for each other, and stop within a step."""

import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from ldm_us.config import BUNDLED, MASK, PICTURE
from ldm_us.data.framing import Frame, as_frame, fit_by, parse_size
from ldm_us.diffusion.model import check_size
from ldm_us.runtime.entry import note
from ldm_us.synthesis.options import SampleOptions, parse_options
from ldm_us.synthesis.recipe import Inversion, Recipe, Region
from ldm_us.synthesis.serving.single import Made, draw_one
from ldm_us.synthesis.weights import Source, framing_of, load_sampler, taught_words

Result = TypeVar("Result")
MOST_AREA = 4  # of a picture, in those that the model draws unless told
Command = tuple[str | Path, ...]  # words of a command line of sample.py, files as paths


class StoppedError(Exception):
    """A request is not wanted any more."""


class Progress(NamedTuple):
    """How far a picture is."""

    call: int  # of the denoiser, from 1
    total: int
    seconds: float | None  # that are left of this picture; None: nothing was measured yet


class Engine:
    """A model that draws for all tabs, one picture at a time."""

    def __init__(self, weights: Path = BUNDLED, device: str = "auto"):
        self.own: Command = () if weights == BUNDLED else ("--weights", weights)
        self.own += () if device == "auto" else ("--device", device)
        usual = self.options_of(())
        self.words = taught_words(Source(weights))
        precision = usual.recipe.sampling.precision
        self.model, self.weights_fields = load_sampler(Source(weights), usual.device, note, precision)
        drawable = self.model.controlnet is not None and self.words.hint != PICTURE
        self.hint = self.words.hint if drawable else MASK  # what masks show here
        self.labels = (("lesion",) if self.hint == MASK else self.hint) if drawable else ()  # what can be drawn for it
        self.framing = framing_of(Source(weights), self.model.config)  # how files come into the size of pictures
        self.size = (self.framing.usual or as_frame(self.framing.side)).size[::-1]  # width and height, unless told
        others = sorted({size[::-1] for size in self.framing.sizes} - {self.size}, reverse=True)
        self.sizes = [f"{width}x{height}" for width, height in (self.size, *others)]  # that it was trained with
        self.pool = ThreadPoolExecutor(1, "studio")
        self.seconds: float | None = None  # of one image in a call of the denoiser, as last measured

    def options_of(self, command: Command) -> SampleOptions:
        """A command, read by the parser of sample.py itself. Raise ValueError where that would refuse it."""
        try:
            return parse_options([str(word) for word in (*command, *self.own)])
        except SystemExit as error:
            raise ValueError(f"sample.py does not read this: {self.shown(command)}") from error

    def shown(self, command: Command) -> str:
        """What a user types; of files the names alone, for where they lie is the server's own business."""
        words = [word.name if isinstance(word, Path) else word for word in (*command, *self.own)]
        return shlex.join(["python", "sample.py", *words])

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError for a size that the model cannot draw, or that takes too long for all who wait."""
        check_size(self.model.config, (height, width))
        if width * height > MOST_AREA * self.size[0] * self.size[1]:
            usual = f"{self.size[0]}x{self.size[1]}"
            raise ValueError(f"{width}x{height} is more than {MOST_AREA} times the area of {usual}. Use a smaller one.")

    def size_of(self, text: Any) -> tuple[int, int]:
        """Width and height of a size as users write it; empty: the model's own. ValueError: it is none."""
        if not text:
            return self.size
        width, height = as_frame(parse_size(str(text)[:20])).size[::-1]
        self.check_size(width, height)
        return width, height

    def fit(self, board: tuple[int, int] | None, width: int, height: int) -> Frame:
        """The size of a file on a board of this width and height, and how it gets there; None: the board follows it."""
        if board is None and self.framing.rule == "bucket":
            return self.framing.frame(width, height)
        return fit_by(self.framing.rule, (board or self.size)[::-1], width, height)

    def asks(self, size: tuple[int, int], from_file: bool) -> Command:
        """What a command says to draw this width and height, from a file of them or from nothing: where it has to."""
        own = self.fit(None, *size).size[::-1] if from_file else self.size
        return () if own == size else ("--size", f"{size[0]}x{size[1]}")

    def cost(self, command: Command) -> float:
        """How many images of its usual size the denoiser sees for a picture: two a call with guidance."""
        options = self.options_of(command)
        sampling = options.recipe.sampling.resolved(self.model.config, options.mask is not None)
        shown, size = getattr(options.recipe.begin, "init", options.mask), self.size
        if options.recipe.sampling.size is not None:
            size = as_frame(options.recipe.sampling.size).size
        elif shown is not None:
            with Image.open(shown) as picture:
                size = self.fit(None, *picture.size).size
        area = size[0] * size[1] / (self.size[0] * self.size[1])
        return area * calls_of(options.recipe) * (1 if sampling.guidance == 1 else 2)

    def drawn(self, command: Command, out: Path) -> Made:
        """Draw the picture of a command as sample.py does, and measure how long it took."""
        begun = monotonic()
        made = draw_one(self.options_of(command), self.model, self.weights_fields, self.words, out)
        self.seconds = (monotonic() - begun) / self.cost(command)
        return made

    def warm_up(self, folder: Path) -> None:
        """Draw in the thread, unseen: the first calls are slow, and then the time of others is known."""
        what = ("--class", self.words.classes[0]) if self.words.classes else ("--prompt", "ultrasound")
        for i in range(2):
            self.pool.submit(self.drawn, (*what, "--n", "1", "--steps", "4"), folder / str(i))

    def draw(self, command: Command, out: Path, stop: Event) -> Iterator[Progress | Made]:
        """Draw the picture of a command in the thread: -> how far it is, call by call, and the picture."""
        yield from self.run(lambda: self.drawn(command, out), command, stop)

    def run(self, job: Callable[[], Result], command: Command, stop: Event) -> Iterator[Progress | Result]:
        """Do a job of a command in the thread; -> its progress, and what it gives. Raise StoppedError after `stop`.

        Whoever leaves this iterator early stops the job: a closed tab, an error.
        """
        told, left = SimpleQueue[Progress | None](), Event()
        total, calls = calls_of(self.options_of(command).recipe), 0
        whole = None if self.seconds is None else self.seconds * self.cost(command)

        def report() -> None:
            nonlocal calls
            if stop.is_set() or left.is_set():
                raise StoppedError
            calls = min(calls + 1, total)
            told.put(Progress(calls, total, None if whole is None else whole * (total - calls + 1) / total))

        def begin() -> Result:
            if stop.is_set() or left.is_set():
                raise StoppedError
            with before_calls(self.model.unet, report):
                return job()

        future = self.pool.submit(begin)
        future.add_done_callback(lambda _: told.put(None))
        try:
            while (progress := told.get()) is not None:
                yield progress
            yield future.result()
        finally:
            left.set()


@contextmanager
def before_calls(network: Any, report: Callable[[], None]) -> Iterator[None]:
    """Inside, `report` is called before every call of a network: it counts, or ends the drawing by raising."""
    hook = network.register_forward_pre_hook(lambda *_: report())
    try:
        yield
    finally:
        hook.remove()


def calls_of(recipe: Recipe) -> int:
    """How often a picture calls the denoiser: once a step, and once more for all that refines it."""
    steps, begin = recipe.walked_steps, recipe.begin
    if isinstance(begin, Inversion):
        return steps * (begin.iterations + 2)
    return steps * (begin.resample if isinstance(begin, Region) else 1)
