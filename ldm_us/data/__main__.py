"""Command line of the data tools: python -m ldm_us.data audit DIR."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm_us.data.audit import audit_busi, format_audit
from ldm_us.entry import run_command


def build_parser() -> argparse.ArgumentParser:
    """Describe the subcommands; each sets `run`, a function of the parsed arguments that returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ldm_us.data", description="Tools for the training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    audit = commands.add_parser(
        "audit",
        help="report what is in a BUSI folder and what is wrong with it",
        description="Open every file of a BUSI folder and report what is in it.",
        epilog="Exit code: 0 when all files can be used; 1 when some cannot (a file does not open, a mask has another "
        "size than its image, a class folder has no image); 2 when DIR is not a BUSI folder.",
    )
    audit.add_argument("folder", metavar="DIR", type=Path, help="Dataset_BUSI_with_GT, or the folder that holds it")
    audit.set_defaults(run=run_audit)
    return parser


def run_audit(args: argparse.Namespace) -> int:
    """Print the audit of a BUSI folder."""
    audit = audit_busi(args.folder)
    print(format_audit(audit))
    return 0 if audit.usable else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    args = build_parser().parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
