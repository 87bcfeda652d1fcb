"""The old place of ldm_us/runtime/processes.py, for imports that have not moved yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from ldm_us.runtime import processes
from ldm_us.runtime.processes import World as Crew

__all__ = ["Crew", "joined"]


@contextmanager
def joined() -> Iterator[Crew]:
    """Join the other processes: they may arrive at the end days apart."""
    with processes.joined(timeout=timedelta(days=30)) as world:
        yield world
