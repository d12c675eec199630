"""The few file operations that the event log and the checkpoint store are made of.

Both take an object with these operations, so that tests can put a simulated file system below them: one that stops at
the k-th operation, tears a write, drops what was not synced, or fills up. ``REAL_FILES`` is the operating system.

Reading is careful, because a run directory may come from elsewhere: links are not followed and only regular files open.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Operations on files and folders; failures are ``OSError``. A handle is an integer."""

    def create(self, path: Path) -> int:
        """Make a new file for appending; it must not exist."""
        ...

    def reopen(self, path: Path) -> int:
        """Open a file for writing over it from its start; it has to be a regular one, no link, and have one name."""
        ...

    def write(self, handle: int, data: bytes, /) -> int:
        """Write where the last write ended; may take fewer bytes than given."""
        ...

    def truncate(self, handle: int, size: int, /) -> None:
        """Cut off what is beyond ``size`` bytes."""
        ...

    def fsync(self, handle: int, /) -> None: ...

    def fdatasync(self, handle: int, /) -> None: ...

    def close(self, handle: int, /) -> None: ...

    def fsync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Move; a file at ``target`` is replaced, a folder there has to be empty."""
        ...

    def mkdir(self, path: Path) -> None: ...

    def rmdir(self, path: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def listdir(self, path: Path) -> list[str]: ...

    def exists(self, path: Path) -> bool: ...

    def is_link(self, path: Path) -> bool: ...

    def read(self, path: Path, offset: int = 0, size: int = -1) -> bytes:
        """At most ``size`` bytes (-1: all) from ``offset`` on, of a regular file that is no link."""
        ...


class RealFiles:
    """The operating system's operations, as they are."""

    write = staticmethod(os.write)
    truncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(os.fdatasync)
    close = staticmethod(os.close)
    rename = staticmethod(os.rename)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    unlink = staticmethod(os.unlink)
    listdir = staticmethod(os.listdir)
    exists = staticmethod(os.path.lexists)
    is_link = staticmethod(os.path.islink)

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def reopen(self, path: Path) -> int:
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:  # a second name may be somebody's backup
            os.close(handle)
            raise OSError(errno.EINVAL, "not a regular file with one name", str(path))
        return handle

    def fsync_folder(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(self, path: Path, offset: int = 0, size: int = -1) -> bytes:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            if offset:
                file.seek(offset)
            if size < 0:
                return file.readall()
            parts = []
            while size > 0 and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)


REAL_FILES = RealFiles()


def write_all(files: Files, handle: int, data: bytes) -> None:
    """Write every byte; one call unless the file system takes fewer at a time."""
    written = files.write(handle, data)
    while written < len(data):
        step = files.write(handle, data[written:])
        if step <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += step


def write_new(files: Files, path: Path, data: bytes) -> None:
    """Make a new file with durable content; its name is durable once its folder is synced.

    After any failure the file is removed, never synced a second time.
    """
    handle = files.create(path)
    try:
        try:
            write_all(files, handle, data)
            files.fsync(handle)
        finally:
            files.close(handle)
    except OSError:
        remove_file(files, path)
        raise


def write_over(files: Files, path: Path, data: bytes) -> None:
    """Give an existing file other content, durable when this returns; after a failure it holds neither.

    A third of the cost of a new file, as nothing but bytes changes on the disk.
    """
    handle = files.reopen(path)
    try:
        write_all(files, handle, data)
        files.truncate(handle, len(data))
        files.fdatasync(handle)
    finally:
        files.close(handle)


def replace_file(files: Files, path: Path, data: bytes) -> None:
    """Give ``path`` this content, whole or not at all, durable with its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove_file(files, temporary)
    write_new(files, temporary, data)
    try:
        files.rename(temporary, path)
    except OSError:
        remove_file(files, temporary)
        raise
    files.fsync_folder(path.parent)


def remove_file(files: Files, path: Path) -> None:
    """Remove a file if it is there; failures are left alone (used where another error is on its way)."""
    try:
        files.unlink(path)
    except OSError:
        return


def make_folder(files: Files, path: Path) -> None:
    """Make a folder and those above it; names made here are durable when this returns."""
    if files.exists(path):
        return
    make_folder(files, path.parent)
    try:
        files.mkdir(path)
    except FileExistsError:
        return
    files.fsync_folder(path.parent)


def remove_folder(files: Files, path: Path) -> None:
    """Remove a folder of plain files (of a link only itself). Not durable: what comes back has to do no harm."""
    if files.is_link(path):
        files.unlink(path)
        return
    for name in files.listdir(path):
        files.unlink(path / name)
    files.rmdir(path)
