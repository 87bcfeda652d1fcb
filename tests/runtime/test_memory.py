"""What a program has freed stays with it: tensors of the same size do not ask the system for pages again."""

import subprocess
import sys

import pytest

from ldm_us.runtime import memory
from ldm_us.runtime.memory import keep_freed_memory

PAGES = """
import resource, sys, torch
from ldm_us.runtime.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
counts = []
for _ in range(20):  # the first few make the pieces that later ones fit into
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)  # 48 MB, more than glibc learns to keep by itself
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""


def page_faults(kept):
    """How many pages the last of twenty equal tensors took from the system."""
    done = subprocess.run([sys.executable, "-c", PAGES, kept], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this C library has no such setting")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_tensor_takes_the_pages_of_the_one_before():
    without = page_faults("returned")
    if without < 1000:
        pytest.skip("this system does not clear pages one by one, or its C library keeps them anyway")
    assert page_faults("kept") < without / 20


def test_elsewhere_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("no glibc here"))
    assert keep_freed_memory() is False


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
