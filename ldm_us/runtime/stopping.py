"""Ctrl-C and SIGTERM end a command at once, but where its work is held: there it sees the first, and ends in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal has ended the command, with this last sentence."""

    def __init__(self, said: str, number: int):
        super().__init__(said)
        self.code = 128 + number  # exit code, as of a program that a signal ended


class Signals:
    """What signals have asked for; the handler of each."""

    def __init__(self) -> None:
        self.held = False
        self.asked = 0  # number of the first signal that came while the work was held
        self.then = ""  # what may be done after an end at once, once something has been begun

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal of a time of held work; end the command at any other."""
        if not self.held or self.asked:
            raise Stopped(f"{'interrupted' if number == signal.SIGINT else 'terminated'}{self.then}", number)
        self.asked = number

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let the block see to what is asked."""
        self.held = True
        try:
            yield
        finally:
            self.held = False


@contextmanager
def caught_signals() -> Iterator[Signals]:
    """Answer Ctrl-C and SIGTERM while the block runs. Only the main thread of a process can do so."""
    signals = Signals()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signals) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def ignore_signals(_: int) -> None:
    """Leave signals to the parent process, which a terminal and a job's end send them too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
