"""How a command ends: exit code 0, 2 and one clear sentence on standard error, or 130 and 143 at a signal."""

import sys
from collections.abc import Callable

from ldm_us.runtime.stopping import Stopped


def run_command(main: Callable[[], int]) -> int:
    """Run `main`; turn what a user can cause (ValueError, OSError) into a sentence and exit code 2."""
    try:
        return main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return stop.code if isinstance(stop, Stopped) else 130
    return 2
