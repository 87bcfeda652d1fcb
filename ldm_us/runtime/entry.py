"""How a command ends: exit code 0, 2 and one clear sentence on standard error, or 130 and 143 at a signal."""

import signal
import sys
from collections.abc import Callable

from ldm_us.runtime.command_line import end_quietly
from ldm_us.runtime.memory import keep_freed_memory
from ldm_us.runtime.stopping import Stopped

NOTHING_WRITTEN = "interrupted: nothing was written"


def run_command(main: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run `main`; turn what a user can cause (ValueError, OSError) into a sentence and exit code 2.

    `interrupted` is said at Ctrl-C, unless what was interrupted has a sentence of its own.
    """
    if signal.getsignal(signal.SIGINT) is end_quietly:  # the imports are done
        signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_freed_memory()
    try:
        return main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print(str(stop) or interrupted, file=sys.stderr)
        return stop.code if isinstance(stop, Stopped) else 130
    return 2


def note(sentence: str) -> None:
    """Tell the user, on standard error, what is doubtful but stops nothing."""
    print(f"note: {sentence}", file=sys.stderr)
