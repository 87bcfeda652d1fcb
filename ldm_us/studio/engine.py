"""The model and the one thread that draws with it: requests wait for each other, and stop within a step."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

from ldm_us.config import BUNDLED
from ldm_us.data.records import load_mask
from ldm_us.runtime.entry import note
from ldm_us.studio.commands import Words, shown
from ldm_us.synthesis.asked import Settled, grey_picture, plan_of, settle
from ldm_us.synthesis.drawing import Wanted, draw_samples
from ldm_us.synthesis.fields import Fields, subject_fields
from ldm_us.synthesis.folder import open_list, write_sample
from ldm_us.synthesis.options import SampleOptions, parse_options
from ldm_us.synthesis.plan import Sample
from ldm_us.synthesis.recipe import Inversion, Recipe, Region
from ldm_us.synthesis.weights import Source, load_sampler, taught_words

Result = TypeVar("Result")


class Stopped(Exception):
    """A request is not wanted any more."""


@dataclass(frozen=True)
class Progress:
    """How far a picture is."""

    call: int  # of the denoiser, from 1
    total: int
    seconds: float | None  # that are left of this picture; None: nothing was measured yet


@dataclass(frozen=True)
class Made:
    """A picture that was drawn: the file that its command writes."""

    words: Words
    path: Path
    sample: Sample
    fields: Fields
    size: Any  # pixels, as the recipe has it
    notes: tuple[str, ...]
    seconds: float
    strips: dict[str, Path]

    @property
    def command(self) -> str:
        """What to type for the same picture."""
        return shown(self.words)


Report = Callable[[], None]  # called before each call of the denoiser; raises Stopped


class Engine:
    """A model that draws for all tabs, one picture at a time."""

    def __init__(self, weights: Path = BUNDLED, device: str = "auto"):
        self.own: Words = () if weights == BUNDLED else ("--weights", weights)
        self.own += () if device == "auto" else (f"--device={device}",)
        self.source = Source(weights)
        options = parse_options([str(word) for word in self.own])
        self.words = taught_words(self.source)
        self.model, self.weights_fields = load_sampler(
            self.source, options.device, note, options.recipe.sampling.precision
        )
        self.pool = ThreadPoolExecutor(1, "studio")
        self.seconds: float | None = None  # of a half of a call of the denoiser, as last measured

    @property
    def labels(self) -> tuple[str, ...]:
        """What a mask of this model can show: one structure today."""
        return () if self.model.controlnet is None else ("lesion",)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        return self.model.config.image_size, self.model.config.image_size

    def estimate(self, words: Words) -> float | None:
        """Seconds that a picture will take; None where nothing was measured."""
        options = self.options_of(words)
        sampling = options.recipe.sampling.resolved(self.model.config, options.mask is not None)
        calls = calls_of(options.recipe) * (1 if sampling.guidance == 1 else 2)
        return None if self.seconds is None else calls * self.seconds

    def options_of(self, words: Words) -> SampleOptions:
        """A command, read by the parser of sample.py itself. Raise ValueError where that would refuse it."""
        try:
            return parse_options([str(word) for word in (*words, *self.own)])
        except SystemExit as error:
            raise ValueError(f"sample.py does not read this: {shown(words)}") from error

    def settled(self, words: Words) -> tuple[SampleOptions, Sample, Wanted, Settled]:
        """All that decides the one picture of a command. Raise ValueError, in one sentence, for what does not fit."""
        options = self.options_of(words)
        plan = plan_of(options, self.words)
        settled = settle(options, plan, self.model, self.weights_fields, self.words)
        (sample,) = plan
        mask = load_mask(sample.subject.masks, settled.recipe.size) if plan.masked else None
        return options, sample, Wanted(sample.subject.prompt, sample.seed, mask), settled

    def drawn(self, words: Words, out: Path, report: Report) -> Made:
        """Draw the picture of a command as sample.py does, and write it into the folder `out`."""
        begun = time.monotonic()
        options, sample, one, (recipe, added, fields, _, notes) = self.settled(words)
        with seeing_calls(self.model.unet, report):
            ((x, strips),) = draw_samples(self.model, [one], recipe, added, options.strips)
        fields = fields | subject_fields(sample.subject, sample.seed, one.mask)
        out.mkdir(parents=True)
        with open_list(out, 0) as done:
            write_sample(out, done, sample, grey_picture(x, options.watermark), one.mask, fields, strips)
        seconds = time.monotonic() - begun
        self.seconds = seconds / calls_of(recipe) / (1 if recipe.sampling.guidance == 1 else 2)
        beside = {kind: out / sample.strip_name(kind) for kind in strips}
        path = out / sample.file_name
        return Made((*words, *self.own), path, sample, fields, recipe.size, tuple(notes), seconds, beside)

    def draw(self, words: Words, out: Path, stop: Event) -> Iterator[Progress | Made]:
        """Draw the picture of a command in the thread; -> how far it is, call by call, and the picture."""
        yield from self.run(lambda report: self.drawn(words, out, report), stop, words)

    def run(self, job: Callable[[Report], Result], stop: Event, words: Words) -> Iterator[Progress | Result]:
        """Run a job in the thread; -> its progress, and what it gives. Raise Stopped once `stop` is set.

        Whoever leaves this iterator stops the job: a closed tab, an error.
        """
        told, total, calls = SimpleQueue[Progress | None](), calls_of(self.options_of(words).recipe), 0
        whole = self.estimate(words)

        def report() -> None:
            nonlocal calls
            if stop.is_set():
                raise Stopped
            calls += 1
            left = None if whole is None else whole * max(total - calls + 1, 0) / total
            told.put(Progress(min(calls, total), total, left))

        def begin() -> Result:
            if stop.is_set():
                raise Stopped
            return job(report)

        future = self.pool.submit(begin)
        future.add_done_callback(lambda _: told.put(None))
        try:
            while (progress := told.get()) is not None:
                yield progress
            yield future.result()
        finally:
            stop.set()


@contextmanager
def seeing_calls(network: Any, report: Report) -> Iterator[None]:
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
