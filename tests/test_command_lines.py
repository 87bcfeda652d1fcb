"""What holds for every command line: one word, one thing; nothing replaced unasked; --help at once."""

import argparse
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ldm_us.data.masks.binarize import READINGS
from ldm_us.evaluation.__main__ import RUN
from ldm_us.evaluation.memorisation.thresholds import FALSE_ALARMS
from ldm_us.evaluation.realism.speckle import DYNAMIC_RANGE
from ldm_us.evaluation.realism.two_sample import STEPS
from ldm_us.training.measured import RANK
from lessons.cells import NAMES
from weights_convert.convert import DTYPES
from weights_convert.lora_export import NAMINGS

ROOT = Path(__file__).resolve().parents[1]
BENCHES = (
    "bars",
    "bundled",
    "copies",
    "many",
    "memory",
    "parity",
    "proofs",
    "rows",
    "samplers",
    "starts",
    "studio",
    "training",
)
PROGRAMS = {  # how each is started -> where its parser is built
    "-m ldm_us.data": "ldm_us.data.__main__",
    "-m ldm_us.training": "ldm_us.training.__main__",
    "-m ldm_us.evaluation": "ldm_us.evaluation.__main__",
    "-m ldm_us.report": "ldm_us.report.__main__",
    "-m ldm_us.studio": "ldm_us.studio.__main__",
    "-m weights_convert": "weights_convert.__main__",
    "-m lessons.book": "lessons.book",
    "-m lessons.check": "lessons.check",
    **{f"bench/{name}.py": f"bench.{name}" for name in BENCHES},
    "-m bench.reference": "bench.reference",
    "-m bench.speed": "bench.speed.__main__",
}
RECIPES = {"train.py": "ldm_us.training.command_line", "sample.py": "ldm_us.synthesis.options"}
RESUMING = {"train.py", "python -m ldm_us.evaluation protocol"}  # the same command again goes on
PATHS = {"DIR", "FILE", "RUN", "DST"}
WORDS = {  # option: type, metavars, nargs; None where nothing is read
    "--out": (Path, PATHS, None),
    "--overwrite": (None, {None}, 0),
    "--seed": (int, {"N"}, None),
    "--n": (int, {"N"}, None),
    "--size": (int, {"PIXELS"}, None),
    "--batch": (int, {"N"}, None),
    "--steps": (int, {"N", "S"}, None),  # of training, of sampling
    "--device": ({str, None}, {None}, None),
    "--data": (Path, {"DIR"}, "+"),
    "--real": (Path, {"DIR"}, "+"),
    "--generated": (Path, {"DIR"}, "+"),
    "--weights": (Path, {"FILE"}, None),
    "--judge": (Path, {"FILE"}, None),
    "--held-out": (float, {"P"}, None),
    "--save-grid": (Path, {"PNG"}, None),
}


def commands_of(parser):
    """The parser, or those of its commands and of theirs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [leaf for command in action.choices.values() for leaf in commands_of(command)]
    return [parser]


def parser_of(name):
    return import_module((PROGRAMS | RECIPES)[name]).build_parser()


def option(parser, name):
    return next((action for action in parser._actions if name in action.option_strings), None)


COMMANDS = {one.prog: one for name in PROGRAMS | RECIPES for one in commands_of(parser_of(name))}
OURS = {one.prog: one for name in PROGRAMS for one in commands_of(parser_of(name))}
every_command = pytest.mark.parametrize("parser", COMMANDS.values(), ids=COMMANDS)
every_described_command = pytest.mark.parametrize("parser", OURS.values(), ids=OURS)


def test_every_program_of_the_house_is_looked_at_here():
    starts = 'if __name__ == "__main__":'
    folders = ("ldm_us", "weights_convert", "lessons", "bench")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if starts in path.read_text("utf-8")]
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if "def main" in path.read_text()}
    taking_none = {"ldm_us.__main__", "bench.tour", "bench.speed.part"}
    assert found - taking_none == set(PROGRAMS.values())
    assert len(COMMANDS) > 25


@every_command
def test_one_word_means_one_thing(parser):
    for action in parser._actions:
        for word in set(action.option_strings) & set(WORDS):
            kind, metavars, nargs = WORDS[word]
            own = getattr(action.type, "__name__", "") == word[2:]  # a reader of this word alone
            assert own or action.type in (kind if isinstance(kind, set) else {kind}), word
            assert action.metavar in metavars, word
            assert action.nargs == nargs, word
            assert word != "--device" or action.default == ("cpu" if "bench" in parser.prog else "auto")


@every_command
def test_what_writes_can_be_told_to_overwrite_or_says_that_the_same_command_goes_on(parser):
    overwrite, texts = option(parser, "--overwrite"), f"{parser.description} {parser.epilog}"
    written = [name for name in ("--out", "--html", "--csv", "--save-grid") if option(parser, name)]
    if parser.prog in RESUMING:
        assert re.search(r"same\s+command|resume", texts + " ".join(str(action.help) for action in parser._actions))
    else:
        assert (overwrite is not None) == bool(written)
        assert overwrite is None or parser.prog in RECIPES or "replace" in overwrite.help


@every_described_command
def test_help_fits_a_screen_and_holds_examples_that_can_be_pasted_and_the_exit_codes(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    _usage, *lines = parser.format_help().splitlines()
    assert len(lines) < 40
    assert [line for line in lines if len(line) > 100] == []
    assert "exit codes: 0" in parser.epilog.lower()
    shown = parser.epilog.partition("examples:\n")[2].partition("\n\n")[0].replace("\\\n", "")
    examples = [shlex.split(line) for line in shown.splitlines()]
    start = parser.prog.split()
    assert len(examples) >= 1
    for words in examples:
        assert words[: len(start)] == start
        parser.parse_args(words[len(start) :])  # or SystemExit


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_and_mistyped_options_are_answered_without_importing_torch_or_numpy(name):
    parser = parser_of(name)
    calls = [one.prog.removeprefix(parser.prog).split() for one in (parser, *commands_of(parser))]
    how = (
        f"run_module({name[3:]!r}, run_name='__main__')"
        if name.startswith("-m ")
        else f"run_path({name!r}, run_name='__main__')"
    )
    code = f"""
import contextlib, io, runpy, sys
for words in {[[*call, last] for call in calls for last in ("--help", "--nonsense")]}:
    sys.argv, out = ["program", *words], io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.{how}
    except SystemExit as end:
        print(end.code, out.getvalue().startswith("usage: python "), {{"torch", "numpy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0 True set()", "2 True set()"] * len(calls)


def test_what_a_parser_says_is_what_the_modules_behind_it_know():
    """Parsers are built before these modules are imported, so that they write down some of their constants."""
    evaluation = "python -m ldm_us.evaluation"
    assert {prog.split()[-1] for prog in COMMANDS if prog.startswith(evaluation)} == set(RUN)
    assert COMMANDS["python -m ldm_us.training prior"].get_default("rank") == RANK
    assert COMMANDS[f"{evaluation} memorisation"].get_default("false_alarms") == FALSE_ALARMS
    assert COMMANDS[f"{evaluation} realism"].get_default("dynamic_range") == DYNAMIC_RANGE
    assert COMMANDS[f"{evaluation} realism"].get_default("two_sample_steps") == STEPS
    assert all(name in option(COMMANDS["python -m ldm_us.data binarize"], "--lesion").help for name in READINGS)
    assert f"1 to {len(NAMES)}" in COMMANDS["python -m lessons.check"]._actions[1].help
    assert set(option(COMMANDS["python -m weights_convert export"], "--names").choices) == set(NAMINGS)
    for command in ("import", "export"):
        assert set(option(COMMANDS[f"python -m weights_convert {command}"], "--dtype").choices) == set(DTYPES)
