"""How a command line is read: --help on one screen and at once, one line above an error, Ctrl-C while torch loads."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sample
import train
from ldm_us.data.__main__ import main as data
from ldm_us.evaluation.__main__ import main as evaluation
from ldm_us.report.__main__ import main as report
from ldm_us.runtime.command_line import add_two_helps, answer_at_once, end_quietly, short_usage
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.command_line import build_parser as sample_parser
from ldm_us.training.__main__ import main as training
from ldm_us.training.command_line import build_parser as train_parser
from weights_convert.__main__ import main as weights_convert

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"train.py": train_parser, "sample.py": sample_parser}
LINES, COLUMNS = 40, 100  # of a screen


def python(*words, **environment):
    """Run Python at the top of the checkout, with more in its environment."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def help_of(build_parser, option, capsys, monkeypatch, columns):
    """What an option of help prints on a screen that is so wide."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        short_usage(build_parser()).parse_args([option])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["--help-all"], ["--wieghts", "x"]], ids=lambda words: words[0])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_mistyped_option_are_answered_before_torch_is_imported(script, words):
    """In the very process that runs the script, as the commands of an installation run it."""
    function = script.removesuffix(".py")
    code = f"""import sys
from ldm_us.runtime import scripts
sys.argv = ["a command", *{words}]
try:
    scripts.{function}()
except SystemExit as end:
    print(end.code, sorted({{"torch", "numpy", "PIL", "tqdm"}} & sys.modules.keys()))
"""
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == f"{2 if words[0] == '--wieghts' else 0} []"
    assert len(done.stderr.splitlines()) == (2 if words[0] == "--wieghts" else 0)


def test_the_overview_of_all_commands_imports_no_torch():
    code = "import sys; from ldm_us.__main__ import main; main([]); print('torch' in sys.modules)"
    assert python("-c", code).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("columns", [80, 100, 200])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_a_screen_with_examples_exit_codes_and_the_way_to_the_rest(capsys, monkeypatch, script, columns):
    lines = help_of(SCRIPTS[script], "--help", capsys, monkeypatch, columns).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= min(columns, COLUMNS)
    text = "\n".join(lines)
    assert "--help-all has the rest" in text
    assert "Exit codes: 0 done, " in text
    assert ("1 --verify found a difference" in text) == (script == "sample.py")
    assert "The same command" in " ".join(text.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_examples_of_the_help_are_command_lines_that_are_taken(script):
    text = SCRIPTS[script]().epilog.replace("\\\n", " ")
    examples = [shlex.split(line) for line in text.splitlines() if line.startswith("  python ")]
    assert len(examples) >= 3
    for python_word, name, *words in examples:
        assert (python_word, name) == ("python", script)
        SCRIPTS[script]().parse_args(words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_longer_help_has_every_option_in_groups_and_the_shorter_a_part_of_them(capsys, monkeypatch, script):
    parser = SCRIPTS[script]()
    every = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
    long, short = (help_of(SCRIPTS[script], o, capsys, monkeypatch, 100) for o in ("--help-all", "--help"))
    listed = [re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE) for text in (long, short)]
    assert set(listed[0]) == {word for word in every if not word.startswith("--no-") or word in listed[0]}
    assert len(every) > len(listed[1]) > 12
    assert set(listed[1]) < set(listed[0])
    assert max(map(len, long.splitlines())) <= COLUMNS
    assert len(re.findall(r"^[a-z].*:$", long, re.MULTILINE)) > 5


def test_a_help_shows_what_it_was_told_to_in_that_order(capsys):
    parser = argparse.ArgumentParser(prog="draw", add_help=False)
    add_two_helps(parser, ["--second", "first"])
    parser.add_argument("first", help="of all")
    parser.add_argument("--second", help="of them")
    parser.add_argument("--third", help="the last")
    with pytest.raises(SystemExit):
        parser.parse_args(["-h"])
    printed = capsys.readouterr().out
    assert printed.index("of them") < printed.index("of all")
    assert "the last" not in printed
    with pytest.raises(SystemExit):
        parser.parse_args(["--help-all"])
    assert "the last" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "argv", "needed"),
    [
        (train.main, ["unet"], "--data DIR ... --out RUN (--steps N | --epochs N)"),
        (sample.main, ["--nonsense"], "[options]"),
        (data, ["phantom"], "--out DIR"),
        (evaluation, ["masks"], "--weights FILE --data DIR ..."),
        (report, [], "RUN ..."),
        (training, ["grain"], "--weights FILE --data DIR ... --out FILE"),
        (weights_convert, ["export"], "FILE --format {compvis,diffusers,controlnet,lora} --out DST"),
    ],
)
def test_an_error_in_a_command_line_has_one_line_above_it_that_names_what_is_needed(capsys, main, argv, needed):
    with pytest.raises(SystemExit) as end:
        main(argv)
    usage, error = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert usage.startswith("usage: ")
    assert needed in usage
    assert ": error: " in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_torch_is_imported_is_one_sentence_and_code_130(tmp_path, script):
    """A stand-in for torch, first in the path, sends the signal to its own process."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('went on')\n"
    )
    needed = {"train.py": ["unet", "--preset", "tiny", "--data", "none", "--steps", 1, "--out"], "sample.py": ["--out"]}
    done = python(script, *needed[script], tmp_path / "out", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("", "interrupted before anything was begun\n")
    assert not (tmp_path / "out").exists()


def test_a_module_that_is_imported_answers_nothing_and_leaves_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    answer_at_once("sample", None)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler, end_quietly])
def test_after_the_imports_ctrl_c_ends_with_a_sentence_of_the_command_and_stays_ignored_where_it_was(
    monkeypatch, handler
):
    before = signal.signal(signal.SIGINT, handler)
    try:
        monkeypatch.setattr(sys, "argv", ["draw"])
        answer_at_once("__main__", argparse.ArgumentParser)
        assert signal.getsignal(signal.SIGINT) is (handler if handler is signal.SIG_IGN else end_quietly)
        seen = []
        run_command(lambda: seen.append(signal.getsignal(signal.SIGINT)) or 0)
        assert seen == [signal.SIG_IGN if handler is signal.SIG_IGN else signal.default_int_handler]
    finally:
        signal.signal(signal.SIGINT, before)
