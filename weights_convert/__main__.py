"""Command line: python -m weights_convert import SRC --out FILE, export FILE --format FORMAT --out DST, audit SRC."""

import argparse
import sys
from collections.abc import Sequence

from ldm_us.runtime.command_line import short_usage
from ldm_us.runtime.entry import run_command
from weights_convert.audit.command import add_audit_parser
from weights_convert.export_command import add_export_parser
from weights_convert.import_command import add_import_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m weights_convert", description="Weights in and out of ldm_us.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_import_parser(commands)
    add_export_parser(commands)
    add_audit_parser(commands)
    args = short_usage(parser).parse_args(argv)
    return int(args.run(args) or 0)  # an audit returns 1 for what does not fit


if __name__ == "__main__":
    sys.exit(run_command(main))
