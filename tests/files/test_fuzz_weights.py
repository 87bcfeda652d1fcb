"""Some files of `python -m tests.files.fuzz_weights`, and that the fuzzer notices each kind of defect."""

import faulthandler
import mmap
import os
import signal
import sys

import pytest

from tests.files import fuzz_weights

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches processes through /proc")


def test_no_damaged_or_lying_file_does_anything_but_open_or_end_in_one_line():
    counts, defects = fuzz_weights.fuzz(80, seed=2, seconds=60)
    assert defects == []
    assert counts.total() == 80
    assert {outcome for _, outcome in counts} == {"opened", "refused"}


def crash(*_):
    faulthandler.disable()  # no report of it
    os.kill(os.getpid(), signal.SIGBUS)


def hang(*_):
    signal.pause()


def spin(*_):
    while True:
        pass


def fill(*_):
    filled = mmap.mmap(-1, 1 << 27)  # 128 MB of new pages: malloc may give such as were freed before the fork
    for page in range(0, len(filled), mmap.PAGESIZE):
        filled[page] = 1
    signal.pause()
    del filled


def trip(*_):
    raise KeyError("x")


def say_two_lines(*_):
    return "refused: a\nb"


@pytest.mark.parametrize(
    ("defect", "outcome"),
    [
        (crash, "signal"),
        (hang, "timeout"),
        (spin, "timeout"),
        (fill, "memory"),
        (trip, "traceback"),
        (say_two_lines, "not one line"),
    ],
)
def test_the_fuzzer_notices_each_kind_of_defect(defect, outcome, monkeypatch):
    monkeypatch.setattr(fuzz_weights, "open_as", defect)
    opener = fuzz_weights.Opener()
    try:
        found, sentence = opener.open("", "", "", 0.1 if defect in (hang, spin) else 30.0, 60)
        assert found == outcome, sentence
    finally:
        opener.close()
