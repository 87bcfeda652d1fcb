"""Every command of a change, parsed by the program that it is for. CHANGE says which change."""

import os

from ldm_us.data import __main__ as data
from ldm_us.synthesis.options import parse_options as parse_sample
from ldm_us.training.command_line import parse_options as parse_train
from tests.changing.page import changes

PARSERS = {"train.py": parse_train, "sample.py": parse_sample, "ldm_us.data": data.build_parser().parse_args}


def test_every_command_of_the_change_is_one():
    change = changes()[int(os.environ["CHANGE"]) - 1]
    seen = []
    for words in change.commands:
        name, *argv = words[1:] if words[0] == "-m" else words
        if name != "pytest":
            PARSERS[name](argv)
            seen.append(name)
    assert "sample.py" in seen
