"""One holder per directory, whatever happens to the holder."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys

import pytest

from nx46vx.errors import EnvironmentFault, LockedError
from nx46vx.runtime.lock import DirectoryLock, read_holder

HOLD = """
import sys
from pathlib import Path
from nx46vx.runtime.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print(lock.fence, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.fence = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_held_directory_is_refused_and_the_holder_named(tmp_path, holder):
    with pytest.raises(LockedError) as refused:
        DirectoryLock(tmp_path / "run.lock").acquire()
    assert str(holder.pid) in str(refused.value)
    assert os.uname().nodename in str(refused.value)
    assert refused.value.exit_code == 6


def test_the_lock_ends_with_a_killed_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    with DirectoryLock(tmp_path / "run.lock") as lock:
        assert lock.fence == holder.fence + 1
        assert read_holder(tmp_path / "run.lock")["pid"] == os.getpid()


def test_one_process_cannot_take_it_twice(tmp_path):
    with DirectoryLock(tmp_path / "run.lock") as lock:
        with pytest.raises(LockedError):
            DirectoryLock(tmp_path / "run.lock").acquire()
        with pytest.raises(LockedError):
            lock.acquire()


def test_the_fencing_epoch_grows_with_every_acquisition(tmp_path):
    fences = []
    for _ in range(4):
        with DirectoryLock(tmp_path / "run.lock") as lock:
            fences.append(lock.fence)
    assert fences == [1, 2, 3, 4]


@pytest.mark.parametrize("lost", ["run.lock", "run.lock.fence"])
@pytest.mark.parametrize("content", [b"", b'{"fence": 1', None])
def test_the_epoch_survives_the_loss_of_either_file(tmp_path, lost, content):
    for _ in range(3):
        with DirectoryLock(tmp_path / "run.lock"):
            pass
    (tmp_path / lost).unlink() if content is None else (tmp_path / lost).write_bytes(content)
    with DirectoryLock(tmp_path / "run.lock") as lock:
        assert lock.fence == 4


def test_a_refused_attempt_leaves_the_epoch_alone(tmp_path):
    with DirectoryLock(tmp_path / "run.lock"):
        for _ in range(3):
            with pytest.raises(LockedError):
                DirectoryLock(tmp_path / "run.lock").acquire()
    with DirectoryLock(tmp_path / "run.lock") as lock:
        assert lock.fence == 2


def test_a_directory_gets_its_lock_inside(tmp_path):
    with DirectoryLock(tmp_path) as lock:
        assert lock.path.parent == tmp_path
        with pytest.raises(LockedError):
            DirectoryLock(tmp_path).acquire()


def test_a_lock_file_that_is_removed_while_it_is_being_taken_is_not_the_one_that_counts(tmp_path, monkeypatch):
    """Two that opened the file at the same time must not end up with one lock each, on the old and on a new file."""
    path, real = tmp_path / "run.lock", fcntl.flock
    removed = []

    def remove_first(handle, how):
        if not removed:
            removed.append(path.unlink())
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with DirectoryLock(path) as lock:
        assert read_holder(path)["fence"] == lock.fence
        with pytest.raises(LockedError):
            DirectoryLock(path).acquire()


def _hold_on(ready, end):
    ready.set()
    end.wait(30)


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    with DirectoryLock(tmp_path / "run.lock"):
        child = context.Process(target=_hold_on, args=(ready, end))
        child.start()
        assert ready.wait(30)
        with pytest.raises(LockedError):  # the child's start has not freed it either
            DirectoryLock(tmp_path / "run.lock").acquire()
    with DirectoryLock(tmp_path / "run.lock") as lock:
        assert lock.fence == 2
    end.set()
    child.join(30)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(EnvironmentFault, match=r"cannot lock files.*run\.lock"):
        DirectoryLock(tmp_path / "run.lock").acquire()


def test_a_link_in_the_lock_files_place_is_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "run.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(EnvironmentFault):
        DirectoryLock(tmp_path / "run.lock").acquire()
    assert (tmp_path / "victim").read_bytes() == b"precious"
