"""A lock file that the kernel gives back when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nx46vx.errors import from_os_error


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold an exclusive ``flock`` on a file, waiting for whoever holds it; works between threads and processes.

    The empty file stays: removing it would let two holders lock two files of the same name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise from_os_error(error, "opening a lock file", path) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise from_os_error(error, "locking", path) from error
        yield
    finally:
        os.close(handle)
