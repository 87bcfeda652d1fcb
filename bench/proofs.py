"""Run every proof of docs/audit.md again, and write what each took into its table.

    python bench/proofs.py                                            # all of them, one after the other
    python bench/proofs.py --only resum                               # those with this word in their claim
    python bench/proofs.py --write                                    # and keep the times, with the machine

A row of the table is a claim, the command that proves it, and what the command said and took. Commands run from the top
of the checkout with this interpreter. Exit code 0: all hold; 1: one does not, and nothing is written.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench is not installed

from ldm_us.runtime.command_line import EXIT_CODES, answer_at_once, short_usage
from ldm_us.runtime.help_page import describe


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python bench/proofs.py")
    about = "Run every proof of docs/audit.md again: its command, and whether the claim holds."
    codes = EXIT_CODES.replace("2 what", "1 a claim does not hold, 2 what")
    describe(parser, about, "--only resume", "--write", codes=codes)
    parser.add_argument("--only", default="", metavar="WORD", help="run the claims with this word alone")
    parser.add_argument("--write", action="store_true", help="write what each took into docs/audit.md, if all hold")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from ldm_us.files.atomic import write_text
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.machine import processor

PAGE = ROOT / "docs" / "audit.md"
ROW = re.compile(r"^\| (?P<claim>[^|]+) \| `(?P<command>[^`|]+)` \| (?P<result>[^|]*) \|$", re.MULTILINE)
MACHINE = re.compile(r"^Run on [^\n]*$", re.MULTILINE)
COUNTED = re.compile(r"(\d+) passed")  # of pytest


def rows_of(page: str) -> Iterator[re.Match[str]]:
    """The proofs of the page, in order."""
    return ROW.finditer(page)


def run(command: str) -> tuple[bool, str]:
    """Run a command; -> whether it ended well, and what to write beside it: "24 tests, 3 s"."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    started = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = time.monotonic() - started
    tests = COUNTED.search(done.stdout)
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return done.returncode == 0, f"{f'{tests[1]} tests, ' if tests else ''}{seconds:.0f} s"


def main(argv: list[str] | None = None) -> int:
    """Run, print, and with --write rewrite the last column."""
    options = build_parser().parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    chosen = [row for row in rows_of(page) if options.only.lower() in row["claim"].lower()]
    if not chosen:
        raise ValueError(f"--only {options.only}: no claim in docs/audit.md has this word.")
    failed = 0
    for row in chosen:
        holds, said = run(row["command"])
        failed += not holds
        print(f"{'holds' if holds else 'FAILS'}  {said:18} {row['claim']}", flush=True)
        page = page.replace(row[0], f"| {row['claim']} | `{row['command']}` | {said} |")
    print(f"{len(chosen) - failed} of {len(chosen)} hold")
    if options.write and not failed:
        write_text(PAGE, MACHINE.sub(f"Run on {processor()}, one thread each.", page, count=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
