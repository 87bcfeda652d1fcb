"""How a command ends: exit code 0, 2 and one clear sentence on standard error, or 130 and 143 at a signal."""

import argparse
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


def short_usage(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Name in its usage what must be given alone, so that an error has one line above it; --help lists the rest."""
    pairs = [group for group in parser._mutually_exclusive_groups if group.required]
    of_pairs = [action for group in pairs for action in group._group_actions]
    words = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                short_usage(command)
        if action in of_pairs:
            if action in (group._group_actions[0] for group in pairs):
                group = next(group for group in pairs if group._group_actions[0] is action)
                words.append(f"({' | '.join(map(word_of, group._group_actions))})")
        elif action.required:
            words.append(word_of(action))
    parser.usage = " ".join(["%(prog)s", *words, "[options]"])
    return parser


def word_of(action: argparse.Action) -> str:
    """An argument as usage writes it: FILE, --out RUN, {vae,unet,controlnet}."""
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    return " ".join([*action.option_strings[-1:], str(value), *["..."] * (action.nargs == "+")])
