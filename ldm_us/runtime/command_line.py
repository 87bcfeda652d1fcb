"""How a command line is read: one screen of --help, one line of usage above an error, and no wait for torch."""

import argparse
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Collection
from functools import partial
from types import FrameType
from typing import Any

WIDTH = 98  # of a help, on a screen that is wider
EXIT_CODES = """\
Exit codes: 0 done, 2 what was given cannot be used (one sentence says why),
130 Ctrl-C, 143 SIGTERM."""


class Help(argparse.Action):
    """--help, which shows what is used every day, and --help-all, which has no such choice."""

    def __init__(self, option_strings: list[str], dest: str, shown: Collection[str] | None = None, **about: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **about)
        self.shown = shown  # option strings, or names of positional arguments; None: all

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and exit."""
        formatter = parser._get_formatter()
        usage = f"usage: {parser.prog}{(parser.usage or '').removeprefix('%(prog)s')}"
        parser.usage = textwrap.fill(usage, formatter._width, subsequent_indent=" " * len(f"usage: {parser.prog} "))[7:]
        if self.shown is None:
            parser.print_help()
            parser.exit()
        known = {name: action for action in parser._actions for name in (action.dest, *action.option_strings)}
        formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
        formatter.add_text(parser.description)
        formatter.start_section("what is used every day; --help-all has the rest")
        formatter.add_arguments(known[name] for name in self.shown)
        formatter.end_section()
        formatter.add_text(parser.epilog)
        print(formatter.format_help(), end="")
        parser.exit()


def add_two_helps(parser: argparse.ArgumentParser, shown: Collection[str]) -> None:
    """Give a parser, made with add_help=False, a --help of a few options, in this order, and a --help-all."""
    width = min(shutil.get_terminal_size().columns - 2, WIDTH)
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=width)
    parser.description = textwrap.fill(parser.description or "", width)
    parser.add_argument("-h", "--help", action=Help, shown=shown, help="what is used every day, on one screen")
    parser.add_argument("--help-all", action=Help, help="every option")


def short_usage(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Name in its usage what must be given alone, so that an error has one line above it; --help lists the rest."""
    pairs = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    words = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                short_usage(command)
        words += [f"({' | '.join(map(word_of, pair))})" for pair in pairs if pair[0] is action]
        words += [word_of(action)] if action.required else []  # one of a pair never is
    parser.usage = " ".join(["%(prog)s", *words, "[options]"])
    return parser


def word_of(action: argparse.Action) -> str:
    """An argument as usage writes it: FILE, --out RUN, {vae,unet,controlnet}."""
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
    return " ".join([*action.option_strings[-1:], str(value), *["..."] * (action.nargs == "+")])


def answer_at_once(name: str, build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Answer --help and refuse a mistyped option where a module of this name is run, not imported.

    It stands above the imports that take seconds. Ctrl-C during these ends the process with a sentence, not a
    traceback; run_command takes over after them.
    """
    if name != "__main__":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_quietly)
    short_usage(build_parser()).parse_args()


def end_quietly(number: int, frame: FrameType | None) -> None:
    """End a process that has done nothing yet."""
    print("interrupted before anything was begun", file=sys.stderr, flush=True)
    os._exit(128 + number)
