"""ldm_us/runtime/processes.py: what one process does alone; the tests of training and synthesis start two."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_us.runtime import processes
from ldm_us.runtime.processes import ALONE, World, joined, local_device, process_count

ROOT = Path(__file__).parents[2]
KINDS = processes.device_kinds  # the fixture no_gpu puts another in its place


def test_alone_nothing_is_exchanged():
    ALONE.barrier()
    ALONE.check_same("anything", object())
    assert ALONE.mean({"loss": 2.0}) == {"loss": 2.0}
    assert ALONE.gathered("mine") == ["mine"]
    assert ALONE.main
    with joined() as world:
        assert world == ALONE


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_piece_of_work_is_taken_by_one_process(size):
    takers = [[rank for rank in range(size) if World(rank, size).takes(number)] for number in range(7)]
    assert all(len(taker) == 1 for taker in takers)
    assert {rank for (rank,) in takers} == set(range(size))


def test_alone_what_the_first_does_is_done_and_its_error_is_raised():
    done = []
    ALONE.first(lambda: done.append(1))
    assert done == [1]

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ALONE.first(fail)


def test_torchrun_says_how_many_there_are_and_which_gpu_is_this_ones(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (process_count(), local_device("cuda")) == (1, "cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (process_count(), local_device("cuda"), local_device("cpu")) == (4, "cuda:3", "cpu")


@pytest.mark.parametrize(
    ("there", "like", "chosen"),
    [
        ({"cuda", "mps"}, "", "cuda"),
        ({"mps"}, "", "mps"),
        (set(), "", "cpu"),
        ({"cuda"}, "cpu", "cpu"),  # a folder that was begun on the CPU
        (set(), "cuda", "cpu"),  # a picture of a GPU, where there is none
    ],
)
def test_auto_is_the_fastest_kind_of_device_that_torch_sees_or_the_kind_that_is_gone_on_with(
    monkeypatch, there, like, chosen
):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "device_kinds", KINDS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert local_device("auto", like) == chosen
    assert local_device("cuda:1", like) == "cuda:1", "what is asked for is not chosen"
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert local_device("auto", like) == ("cuda:2" if chosen == "cuda" else chosen)


def test_for_one_process_nothing_of_sharding_or_checkpoints_is_imported():
    """Their import takes seconds, which one process need not wait for."""
    code = "import sys, train; print(sorted(name for name in sys.modules if name.startswith('torch.distributed.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'torch.distributed.distributed_c10d'" in done.stdout, "what PyTorch itself imports"
    for name in ("fsdp", "checkpoint.state_dict"):
        assert f"'torch.distributed.{name}'" not in done.stdout
