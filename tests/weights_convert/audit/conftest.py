"""The audit as a command."""

import pytest

from ldm_us.runtime.entry import run_command
from weights_convert.__main__ import main


@pytest.fixture
def run_audit(capsys):
    """A function: `python -m weights_convert audit`; -> (exit code, standard output, standard error)."""

    def call(*arguments):
        code = run_command(lambda: main(["audit", *map(str, arguments)]))
        return (code, *capsys.readouterr())

    return call
