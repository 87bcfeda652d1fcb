"""Atomic files and folders: the old one until the new one is whole, and no trace of a failure."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from ldm_us.files.atomic import atomic_file, atomic_folder, full_disk_is_an_error_of_input, sha256_file

FAILURES = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("model"), KeyboardInterrupt()]


@pytest.fixture(params=["fresh", "existing"])
def path(request, tmp_path):
    target = tmp_path / "model.safetensors"
    if request.param == "existing":
        target.write_bytes(b"old")
    return target


def contents(path):
    """The names and bytes of the folder."""
    return {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}


def test_the_file_holds_what_was_written_and_is_alone(path):
    with atomic_file(path) as file:
        file.write(b"new ")
        file.write(b"bytes")
    assert contents(path) == {path.name: b"new bytes"}


def test_the_path_as_a_string_works_too(path):
    with atomic_file(str(path)) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_until_the_block_ends_the_name_holds_what_it_held(path):
    before = contents(path)
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert {name: data for name, data in contents(path).items() if name == path.name} == before


def write_half(path, failure):
    with atomic_file(path) as file:
        file.write(b"half")
        raise failure


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_in_the_block_leaves_the_old_file_and_nothing_else(path, failure):
    before = contents(path)
    with pytest.raises(type(failure)) as raised:
        write_half(path, failure)
    assert raised.value is failure
    assert contents(path) == before


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_at_the_end_leaves_the_old_file_and_nothing_else(path, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(path)
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"), atomic_file(path) as file:
        file.write(b"whole, but not on the disk")
    assert contents(path) == before


def test_the_bytes_reach_the_disk_before_the_name_does(path, monkeypatch):
    calls = []
    real = {"fsync": os.fsync, "replace": os.replace}
    for name, function in real.items():
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (calls.append(name), function(*a)))
    with atomic_file(path) as file:
        file.write(b"new")
    assert calls == ["fsync", "replace", "fsync"], "the file, its name, the folder"


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "none" / "file"):
        raise AssertionError("the block does not run")


@pytest.mark.parametrize("size", [0, 5, (1 << 22) + 7])
def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path, size):
    data = os.urandom(16) * (size // 16) + b"x" * (size % 16)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_full_disk_is_reported_with_the_name_of_the_file_that_did_not_fit(tmp_path, full_disk, monkeypatch):
    full_disk("model", 3, monkeypatch)
    with pytest.raises(OSError, match="No space left") as raised, atomic_file(tmp_path / "model.safetensors") as file:
        file.write(b"more than three bytes")
    assert raised.value.filename == str(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


# Folders


@pytest.fixture(params=["fresh", "existing", "linked"])
def folder(request, tmp_path):
    target = tmp_path / "folder"
    if request.param == "existing":
        target.mkdir()
    if request.param == "linked":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to("elsewhere", target_is_directory=True)
    if request.param != "fresh":
        (target / "old").write_bytes(b"old")
    return target


def tree(folder):
    """The names and bytes of all files around and in the folder, by way of links too."""
    paths = [path for path in (*folder.parent.rglob("*"), *folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}


def fill(folder, failure=None):
    with atomic_folder(folder) as new:
        (new / "inner").mkdir()
        with atomic_file(new / "inner" / "new") as file:
            file.write(b"new")
        if failure is not None:
            raise failure


def test_a_folder_holds_what_was_written_and_is_alone(folder):
    linked = folder.is_symlink()
    fill(folder)
    assert [path.relative_to(folder) for path in sorted(folder.rglob("*"))] == [Path("inner"), Path("inner/new")]
    assert (folder / "inner" / "new").read_bytes() == b"new"
    assert folder.is_symlink() == linked
    assert {path.name for path in folder.parent.iterdir()} == {"folder", *["elsewhere"] * linked}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_in_the_block_leaves_the_old_folder_and_nothing_else(folder, failure):
    before = tree(folder)
    with pytest.raises(type(failure)):
        fill(folder, failure)
    assert tree(folder) == before


def test_a_folder_that_cannot_be_moved_leaves_the_old_folder_and_nothing_else(folder, monkeypatch):
    """The moves: of the file in it, of the old folder if there is one, of the new one; each of them fails once."""
    before, replace, calls, broken = tree(folder), os.replace, [], 0

    def fail(source, target):
        calls.append(source)
        if len(calls) == broken:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    for broken in range(1, (3 if folder.exists() else 2) + 1):  # noqa: B007 (fail reads it)
        calls.clear()
        with pytest.raises(OSError, match="Input/output error"):
            fill(folder)
        assert tree(folder) == before
    broken = 0
    calls.clear()
    fill(folder)
    assert len(calls) == (3 if before else 2)


def test_an_error_names_the_folder_that_was_asked_for_and_not_its_temporary_name(tmp_path, full_disk, monkeypatch):
    full_disk("new", 1, monkeypatch)
    with pytest.raises(OSError, match="No space left") as raised:
        fill(tmp_path / "folder")
    assert raised.value.filename == str(tmp_path / "folder" / "inner" / "new")


def test_a_full_disk_is_told_as_a_sentence_and_other_errors_stay_what_they_are():
    for number in (errno.ENOSPC, errno.EDQUOT):
        with (
            pytest.raises(ValueError, match="out: the disk is full; nothing was written"),
            full_disk_is_an_error_of_input("out"),
        ):
            raise OSError(number, "full")
    with pytest.raises(PermissionError), full_disk_is_an_error_of_input("out"):
        raise PermissionError
