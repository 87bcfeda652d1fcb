"""What stands around the options in --help: what a command does, how it is called, and its exit codes."""

import argparse
from functools import partial
from textwrap import wrap
from typing import Any

from ldm_us.runtime.command_line import EXIT_CODES

lines_of = partial(wrap, width=96, break_on_hyphens=False)


def describe(parser: Any, about: str, *examples: str, codes: str = EXIT_CODES) -> argparse.ArgumentParser:
    """Set what a parser says; an example is what stands behind the name of the command."""
    shown = [" \\\n      ".join(lines_of(f"  {parser.prog} {one}")) for one in examples]
    said = [line for one in codes.splitlines() for line in lines_of(one, subsequent_indent="  ")]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "\n".join(lines_of(about))
    parser.epilog = "\n".join(["examples:", *shown, "", *said])
    return parser


def add_command(commands: Any, name: str, about: str, *examples: str, codes: str = EXIT_CODES) -> Any:
    """Add a command, whose first sentence stands in the list of all."""
    return describe(commands.add_parser(name, help=about.partition(". ")[0].rstrip(".")), about, *examples, codes=codes)
