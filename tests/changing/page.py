"""What docs/changing.md holds, read from its text. `python -m tests.changing.page 4` prints the diff of change 4."""

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "changing.md"


@dataclass(frozen=True)
class Change:
    """One of the six."""

    number: int
    diff: str  # "" where no code changes
    commands: list[list[str]]  # after `python`
    text: str
    row: list[str]  # of the table at the top

    @property
    def tests(self) -> list[str]:
        """The files of tests that its command names."""
        (argv,) = (words[2:] for words in self.commands if words[:2] == ["-m", "pytest"])
        return argv


def changes() -> list[Change]:
    """Every change of the page."""
    page = PAGE.read_text(encoding="utf-8")
    rows = {
        line[3]: [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "| [" in line
    }
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        if not section[0].isdigit():
            continue
        diff = "".join(re.findall(r"^```diff\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
        lines = re.findall(r"^(?:    )?(python .*)$", section, re.MULTILINE)  # indented, or in a block
        commands = [shlex.split(line)[1:] for line in lines]
        found.append(Change(int(section[0]), diff, commands, section, rows[section[0]]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.changing.page", description="Print the diff of a change.")
    parser.add_argument("number", type=int, choices=range(1, 6))
    print(changes()[parser.parse_args().number - 1].diff, end="")
