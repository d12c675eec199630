"""One holder per directory: a kernel lock (flock) that dies with its process, and a fencing epoch that only grows."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import orjson

from nx46vx.errors import EnvironmentFault, IntegrityError, LockedError, from_os_error
from nx46vx.paths import RunPaths
from nx46vx.runtime.atomic import write_bytes
from nx46vx.runtime.files import REAL_FILES

MAX_FENCE = 10**8  #: names hold eight digits
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_HELD: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


class DirectoryLock:
    """Exclusive hold on a directory, as a context manager.

    ``path`` is the lock file, or a directory (then ``lock`` in it). The file names the holder: ``pid``, ``host``,
    ``started_ns``, ``fence``. It stays after a release; only the kernel's lock says whether it is held. The fencing
    epoch stands in ``<file>.fence``, is written durably before the lock counts as taken, and grows by one each time.

    The lock is not inherited: a child made by ``fork`` drops its copy, so it ends with the process that took it.

    Raises (on entering):
        LockedError: another process, or another object in this one, holds it; names its pid and host.
        EnvironmentFault: no right to write there, or a file system without flock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "lock" if path.is_dir() else path
        self.fence = 0
        self._handle: int | None = None

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock at once or raise; never waits."""
        if self._handle is not None:
            raise self._locked()
        handle = self._open_locked()
        try:
            self.fence = self._next_fence()
            content = orjson.dumps(
                {"pid": os.getpid(), "host": platform.node(), "started_ns": time.time_ns(), "fence": self.fence}
            )
            os.ftruncate(handle, 0)
            os.pwrite(handle, content + b"\n", 0)
        except OSError as error:
            os.close(handle)
            raise from_os_error(error, "taking the lock", self.path) from error
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _HELD.add(self)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _open_locked(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    mine, there = os.fstat(handle), os.stat(self.path)
                    if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                        return handle
                except FileNotFoundError:  # removed between opening and locking: lock the next one
                    pass
                except BaseException:
                    os.close(handle)
                    raise
                os.close(handle)
        except BlockingIOError as error:
            raise self._locked() from error
        except OSError as error:
            if error.errno in _NO_FLOCK:
                raise EnvironmentFault(
                    "this file system cannot lock files", where=self.path, found=error.strerror,
                    fix="put the run directory on a local disk",
                ) from error  # fmt: skip
            raise from_os_error(error, "taking the lock", self.path) from error

    def _next_fence(self) -> int:
        """The fencing epoch after the last one, durable. Read from both places that hold it; the higher counts."""
        counter = self.path.with_name(f"{self.path.name}.fence")
        last = max(_fence_in(counter), _fence_in(self.path))
        write_bytes(counter, orjson.dumps({"fence": last + 1}) + b"\n")
        return last + 1

    def _locked(self) -> LockedError:
        holder = read_holder(self.path)
        pid, host = holder.get("pid", "unknown"), holder.get("host", "unknown")
        return LockedError(
            "another run holds this directory", where=self.path, found=f"pid {pid} on host {host}",
            fix="wait for it to end, or stop it (it saves its state on SIGTERM)",
        )  # fmt: skip


@contextmanager
def at_rest(run: Path) -> Iterator[None]:
    """Keep a run from being started while its directory is read; writes nothing there.

    Raises:
        LockedError: it is going on.
    """
    lock = RunPaths(run).lock
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    except OSError as error:
        raise from_os_error(error, "looking at the run's lock", lock) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = read_holder(lock)
            raise LockedError(
                "this run is going on", where=run,
                found=f"pid {holder.get('pid', 'unknown')} on host {holder.get('host', 'unknown')}",
                fix="wait for it to end, or stop it (it saves its state on SIGTERM)",
            ) from error  # fmt: skip
        except OSError:  # a file system without locks: then no run can have been started there
            pass
        yield
    finally:
        os.close(handle)


def read_holder(path: Path) -> dict[str, object]:
    """What a lock file says of its holder (``pid``, ``host``, ...); empty if it says nothing."""
    for _ in range(20):  # the holder may be writing this very moment
        holder = _load(path)
        if "pid" in holder:
            return holder
        time.sleep(0.005)
    return {}


def _fence_in(path: Path) -> int:
    fence = _load(path).get("fence", 0)
    if isinstance(fence, int) and fence >= MAX_FENCE:
        raise IntegrityError(
            "the count of sessions is impossible", where=path, found=fence, fix="restore the file from a copy"
        )
    return fence if isinstance(fence, int) and fence > 0 else 0


def _load(path: Path) -> dict[str, object]:
    try:
        value = orjson.loads(REAL_FILES.read(path, 0, 1 << 16))
    except (OSError, orjson.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _drop_in_child() -> None:
    """A forked child closes its copies, which does not touch the parent's lock."""
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)
