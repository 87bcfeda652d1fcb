"""How a command ends: exit code 0, or 2 and one clear sentence on standard error."""

import sys
from collections.abc import Callable


def run_command(main: Callable[[], int]) -> int:
    """Run `main`; turn what a user can cause (ValueError, OSError) into a sentence and exit code 2."""
    try:
        return main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 2
