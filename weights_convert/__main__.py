"""Command line: python -m weights_convert import SRC --out FILE, and export FILE --format FORMAT --out DST."""

import argparse
import sys
from collections.abc import Sequence

from ldm_us.entry import run_command
from weights_convert.export_command import add_export_parser
from weights_convert.import_command import add_import_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description="Weights in and out of ldm_us.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_import_parser(commands)
    add_export_parser(commands)
    args = parser.parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
