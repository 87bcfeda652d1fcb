"""Resumable states: the newest whole one, no code run from them, and none lost to a failing write."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from ldm_us.training.log import trim_log
from ldm_us.training.run import list_states, load_newest_state, save_state


@pytest.fixture
def run(tmp_path):
    return tmp_path


def save(run, step):
    save_state(run, step, {"trained": {"w": torch.full((1000,), float(step))}})


def names(run):
    return [path.name for path in (run / "state").iterdir()]


def truncate(path, kept):
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])


def test_a_run_without_states_starts_fresh(run):
    assert load_newest_state(run) is None


def test_a_state_comes_back_as_it_was_saved(run):
    save(run, 7)
    state = load_newest_state(run)
    assert state["step"] == 7
    assert torch.equal(state["trained"]["w"], torch.full((1000,), 7.0))


def test_the_two_newest_states_are_kept_by_number_and_not_by_time(run):
    for step in (9, 10, 100):
        save(run, step)
    assert [path.name for path in list_states(run)] == ["step_00000010.pt", "step_00000100.pt"]
    assert sorted(names(run)) == ["step_00000010.pt", "step_00000100.pt"]


def test_files_of_other_names_are_neither_read_nor_deleted(run):
    save(run, 1)
    others = {"step_99999999.pt.bak", "step_9.pt", ".step_00000009.pt.123.tmp", "notes.txt"}
    for name in others:
        (run / "state" / name).write_bytes(b"")
    for step in (2, 3, 4):
        save(run, step)
    assert load_newest_state(run)["step"] == 4
    assert others < set(names(run))


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_newest_state_gives_way_to_the_one_before(run, kept):
    for step in (1, 2):
        save(run, step)
    truncate(run / "state" / "step_00000002.pt", kept)
    assert load_newest_state(run)["step"] == 1


def test_when_no_state_can_be_read_one_error_names_them_all(run):
    for step in (1, 2):
        save(run, step)
        truncate(run / "state" / f"step_{step:08d}.pt", 0.5)
    with pytest.raises(ValueError, match=r"step_00000002\.pt.*step_00000001\.pt.*Add --restart") as raised:
        load_newest_state(run)
    assert "\n" not in str(raised.value)


class Code:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_state_is_not_run(run, tmp_path):
    (run / "state").mkdir()
    torch.save({"step": 1, "x": Code(tmp_path / "it_ran")}, run / "state" / "step_00000001.pt")
    with pytest.raises(ValueError, match=r"step_00000001\.pt"):
        load_newest_state(run)
    assert not (tmp_path / "it_ran").exists()


class Fill:
    """Pickles as a call that weights_only=True obeys: 2 GB."""

    def __reduce__(self):
        return bytearray, (2**31 - 1,)


def test_a_state_made_to_fill_the_memory_is_refused_before_torch_reads_it(run, monkeypatch):
    (run / "state").mkdir()
    torch.save({"step": 1, "x": Fill()}, run / "state" / "step_00000001.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch has read it"))
    with pytest.raises(ValueError, match=r"step_00000001\.pt"):
        load_newest_state(run)


def test_the_state_that_holds_code_would_run_it_when_unpickled_without_care(run, tmp_path):
    """Proof that the test above tests something."""
    torch.save({"x": Code(tmp_path / "it_ran")}, run / "evil.pt")
    torch.load(run / "evil.pt", weights_only=False)
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("limit", [0, 100, 3000, 5000])
def test_a_disk_that_fills_up_within_a_state_is_an_os_error_that_names_it_and_leaves_the_old_states(
    run, full_disk, monkeypatch, limit
):
    """torch.save itself answers with a RuntimeError about a position in its archive."""
    for step in (1, 2):
        save(run, step)
    assert (run / "state" / "step_00000001.pt").stat().st_size > 5000, "or the disk is not full"
    full_disk("step_", limit, monkeypatch)
    with pytest.raises(OSError, match="No space left on device") as raised:
        save(run, 3)
    assert raised.value.errno == errno.ENOSPC
    assert "step_00000003.pt" in str(raised.value.filename)
    assert sorted(names(run)) == ["step_00000001.pt", "step_00000002.pt"]
    assert load_newest_state(run)["step"] == 2


def test_a_disk_that_fills_up_at_the_last_sync_leaves_the_old_states_and_no_temporary(run, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in (1, 2):
        save(run, step)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        save(run, 3)
    assert sorted(names(run)) == ["step_00000001.pt", "step_00000002.pt"]


def test_an_error_of_torch_that_is_not_about_the_disk_is_not_hidden(run):
    with pytest.raises((RuntimeError, TypeError, AttributeError), match=r"pickle|local"):
        save_state(run, 1, {"x": lambda: None})
    assert names(run) == []


def test_trimming_drops_what_lies_after_the_step_and_a_torn_last_line(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.1 * step}) for step in (10, 20, 30)]
    log.write_text("\n".join(lines) + "\n" + '{"step": 15, "lo')
    trim_log(log, 20)
    assert log.read_text() == "\n".join(lines[:2]) + "\n"
    trim_log(log, 0)
    assert log.read_text() == ""


def test_a_log_that_does_not_exist_is_not_made(tmp_path):
    trim_log(tmp_path / "log.jsonl", 3)
    assert list(tmp_path.iterdir()) == []
