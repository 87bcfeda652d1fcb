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

from ldm_us.config import BUNDLED, MASK
from ldm_us.data.framing import as_frame
from ldm_us.runtime.entry import note
from ldm_us.synthesis.options import SampleOptions, parse_options
from ldm_us.synthesis.recipe import Inversion, Recipe, Region
from ldm_us.synthesis.serving.single import Made, draw_one
from ldm_us.synthesis.weights import Source, framing_of, load_sampler, taught_words

Result = TypeVar("Result")
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
        drawable = self.model.controlnet is not None and self.words.hint == MASK
        self.labels = ("lesion",) if drawable else ()  # what can be drawn for it: not several structures, nor pictures
        framing = framing_of(Source(weights), self.model.config)
        self.aspect = framing.rule  # by which files come into this size
        self.size = (framing.usual or as_frame(framing.side)).size[::-1]  # width and height of pictures
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

    def cost(self, command: Command) -> int:
        """How many images the denoiser sees for a picture: two a call with guidance."""
        options = self.options_of(command)
        sampling = options.recipe.sampling.resolved(self.model.config, options.mask is not None)
        return calls_of(options.recipe) * (1 if sampling.guidance == 1 else 2)

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
