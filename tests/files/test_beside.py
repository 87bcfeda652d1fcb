"""What is written beside the main thread is a copy, whole, in order, and its errors are not lost."""

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from ldm_us.files.beside import Beside, off_host, on_host, write_tensors


def test_one_write_begins_when_the_one_before_it_has_ended():
    beside, begun, go_on = Beside(), [], threading.Event()
    beside.start(lambda: begun.append(1) or (go_on.wait(60) and begun.append(2)))
    threading.Timer(0.05, go_on.set).start()
    beside.start(lambda: begun.append(3))
    beside.wait()
    assert begun == [1, 2, 3]


def test_an_error_is_raised_by_the_next_call_once(tmp_path):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "state")

    for call in (lambda beside: beside.wait(), lambda beside: beside.start(lambda: None)):
        beside = Beside()
        beside.start(fail)
        with pytest.raises(OSError, match="No space left"):
            call(beside)
        beside.wait()


def test_a_program_ends_after_what_it_writes(tmp_path):
    code = "import time, sys; from ldm_us.files.beside import Beside; from pathlib import Path\n"
    code += "Beside().start(lambda: (time.sleep(0.3), Path(sys.argv[1]).write_text('whole'))); raise SystemExit(3)"
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=Path(__file__).parents[2])
    assert (ended.returncode, (tmp_path / "x").read_text()) == (3, "whole")


def test_a_copy_shares_no_memory_and_what_is_no_tensor_stays(tmp_path):
    value = {"a": torch.ones(3), "b": [torch.zeros(2), 5], "c": "name"}
    copied = on_host(value)
    value["a"].fill_(7)
    value["b"][0].fill_(7)
    write_tensors(tmp_path / "x", copied)
    read = torch.load(tmp_path / "x", weights_only=True)
    assert (read["a"].tolist(), read["b"][0].tolist(), read["b"][1], read["c"]) == ([1, 1, 1], [0, 0], 5, "name")
    assert not off_host(value)
    assert off_host([{"x": torch.empty(1, device="meta")}])
