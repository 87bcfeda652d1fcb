"""How a command ends: its exit code, and one sentence on standard error."""

import errno

import pytest

from ldm_us.runtime.entry import NOTHING_WRITTEN, run_command


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("code", [0, 1])
def test_the_code_of_a_command_that_ends_is_passed_on_in_silence(capsys, code):
    assert run_command(lambda: code) == code
    assert capsys.readouterr() == ("", "")


def test_what_a_user_can_cause_is_one_sentence_on_stderr_and_code_2(capsys):
    assert run_command(raising(ValueError("--steps 0: use more."))) == 2
    assert capsys.readouterr() == ("", "error: --steps 0: use more.\n")


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/x.pt"), "error: run/x.pt: No space left on device."),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device."),
        (OSError("odd"), "error: odd."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a b.png"), "error: a b.png: No such file"),
    ],
)
def test_an_error_of_the_system_names_the_file_where_it_is_known(capsys, error, start):
    assert run_command(raising(error)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(start)
    assert printed.err.count("\n") == 1


def test_an_interrupt_ends_with_the_code_of_the_shell(capsys):
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run_command(raising(KeyboardInterrupt()), NOTHING_WRITTEN) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert run_command(raising(KeyboardInterrupt("interrupted: go on")), NOTHING_WRITTEN) == 130
    assert capsys.readouterr().err == "interrupted: go on\n"


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours"), AssertionError("ours")])
def test_a_mistake_of_ours_is_not_dressed_up_as_the_users(error):
    with pytest.raises(type(error), match="ours"):
        run_command(raising(error))
