"""ldm_us/files/locks.py: who holds a folder, also on a file system that locks only what is open for writing."""

import os
import signal

import pytest

from ldm_us.files.locks import NAME, locked, take_shared, try_exclusive
from ldm_us.synthesis.folder import COMMAND, check_free, occupied

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def nfs(monkeypatch):
    """NFS answers a lock for one holder alone with EBADF where the file is not open for writing."""
    flock = fcntl.flock

    def strict(file, operation):
        descriptor = file if isinstance(file, int) else file.fileno()
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", strict)


def test_a_folder_is_held_by_one_and_let_go_at_the_end(tmp_path, nfs):
    with locked(tmp_path, "taken"), pytest.raises(ValueError, match=r"^taken$"), locked(tmp_path, "taken"):
        pass
    with locked(tmp_path, "taken"):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == b""


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path, "taken"):
            os.write(writing, b"held")
            signal.pause()
    os.read(reading, 4)
    with pytest.raises(ValueError, match="taken"), locked(tmp_path, "taken"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path, "taken"):
        pass


def test_a_file_may_be_shared_by_several_or_held_by_one(tmp_path, nfs):
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    with open(path, "r+b") as a, open(path, "r+b") as b, open(path, "r+b") as c:
        take_shared(a)
        take_shared(b)
        assert not try_exclusive(c)
    with open(path, "r+b") as c:
        assert try_exclusive(c)
    assert path.read_bytes() == b"kept"


def test_the_folder_of_samples_locks_what_is_open_for_writing(tmp_path, nfs):
    (tmp_path / COMMAND).write_text("{}")
    check_free(tmp_path)
    with occupied(tmp_path), pytest.raises(ValueError, match=r"another call of sample\.py is writing into it"):
        check_free(tmp_path)
    check_free(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [COMMAND]
