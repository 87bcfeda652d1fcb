"""Command line of the evaluation: python -m ldm_us.evaluation COMMAND ..., where --help lists the commands."""

import argparse
import sys

from ldm_us.evaluation.distribution.command import add_distribution_command
from ldm_us.evaluation.judge.command import add_judge_command
from ldm_us.evaluation.masks.command import add_mask_fidelity_command
from ldm_us.evaluation.measuring.command import add_measuring_commands
from ldm_us.evaluation.memorisation.command import add_memorisation_command
from ldm_us.evaluation.protocol.command import add_protocol_command
from ldm_us.evaluation.reader.command import add_reader_command
from ldm_us.evaluation.realism.command import add_realism_command
from ldm_us.runtime.checks import check_device
from ldm_us.runtime.command_line import short_usage
from ldm_us.runtime.entry import run_command


def build_parser() -> argparse.ArgumentParser:
    """Describe the subcommands; each sets `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_us.evaluation", description="Is what the model makes any good?"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_measuring_commands(commands)
    add_mask_fidelity_command(commands)
    add_reader_command(commands)
    add_memorisation_command(commands)
    add_judge_command(commands)
    add_distribution_command(commands)
    add_realism_command(commands)
    add_protocol_command(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand."""
    options = short_usage(build_parser()).parse_args(argv)
    check_device(options.device)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(run_command(main))
