"""Rows of a shared file: what was written is found, by every process, and nothing that was written in part is."""

import os

import numpy as np
import pytest
import torch

from ldm_us.files.rows import HEADER, KEY, Rows, as_tensor


def rows_of(*values, size=6):
    return np.stack([np.full(size, value, np.uint8) for value in values])


@pytest.mark.parametrize("shared", [True, False])
def test_rows_are_found_by_their_keys_whoever_wrote_them_and_absent_ones_are_minus_one(tmp_path, shared):
    path = tmp_path / "folder" / "x" if shared else None
    rows = Rows(path, 6)
    assert rows.find(["a"]).tolist() == [-1]
    rows.add(["a", "b"], rows_of(1, 2))
    rows.add(["c"], rows_of(3))
    rows.load()
    other = Rows(path, 6) if shared else rows
    assert other.rows[other.find(["c", "a", "b"])].tolist() == rows_of(3, 1, 2).tolist()
    assert other.find(["d", "b", "e", "b"]).tolist() == [-1, 1, -1, 1]


def test_what_one_has_mapped_stays_as_it_is_while_another_writes(tmp_path):
    first, second = Rows(tmp_path / "x", 6), Rows(tmp_path / "x", 6)
    first.add(["a"], rows_of(1))
    second.load()
    mapped = as_tensor(second.rows)
    first.add(["b"], rows_of(2))
    assert mapped.tolist() == rows_of(1).tolist()
    assert second.find(["b"]).tolist() == [-1]
    second.load()
    assert second.rows[second.find(["b"])].tolist() == rows_of(2).tolist()


def test_processes_that_write_at_once_lose_no_row(tmp_path):
    children = []
    for child in range(4):
        number = os.fork()
        if number == 0:
            mine = Rows(tmp_path / "x", 6)
            for i in range(20):
                mine.add([f"{child} {i}"], rows_of(20 * child + i))
            os._exit(0)
        children.append(number)
    assert [os.waitpid(number, 0)[1] for number in children] == [0] * 4
    rows = Rows(tmp_path / "x", 6)
    found = rows.find([f"{child} {i}" for child in range(4) for i in range(20)])
    assert rows.rows[found][:, 0].tolist() == list(range(80))


@pytest.mark.parametrize(
    ("name", "length", "left"),
    [
        *(("keys", length, (length - HEADER) // KEY) for length in (HEADER, HEADER + 1, HEADER + 2 * KEY, HEADER + 47)),
        ("keys", 5, 0),
        ("keys", 0, 0),
        *(("rows", length, length // 6) for length in (0, 5, 6, 17)),
    ],
)
def test_whatever_a_kill_cuts_off_is_not_found_and_written_again(tmp_path, name, length, left):
    """And no key leads to another's row, whatever is written afterwards."""
    Rows(tmp_path / "x", 6).add(["a", "b", "c"], rows_of(1, 2, 3))
    with open(tmp_path / f"x.{name}", "r+b") as file:
        file.truncate(length)
    rows = Rows(tmp_path / "x", 6)
    there = [key for key in "abc" if rows.find([key])[0] >= 0]
    assert there == list("abc")[:left]
    for key, value in (("d", 4), ("e", 5), ("c", 3)):
        rows.add([key], rows_of(value))
        rows.load()
        for other, expected in zip("abcde", (1, 2, 3, 4, 5), strict=True):
            (at,) = rows.find([other])
            assert at < 0 or rows.rows[at].tolist() == [expected] * 6
    assert (rows.find(["c", "d", "e"]) >= 0).all()


def test_rows_of_another_maker_or_size_are_refused(tmp_path):
    Rows(tmp_path / "x", 6, "one").add(["a"], rows_of(1))
    for size, maker in ((6, "another"), (3, "one")):
        with pytest.raises(ValueError, match="Delete the folder"):
            Rows(tmp_path / "x", size, maker)


def test_a_mapped_tensor_takes_no_memory_of_its_own(tmp_path):
    rows = Rows(tmp_path / "x", 6)
    rows.add(["a"], rows_of(1))
    rows.load()
    tensor = as_tensor(rows.rows)
    assert tensor.data_ptr() == rows.rows.ctypes.data
    assert tensor.dtype == torch.uint8
