"""A file system in memory below the event log and the checkpoint store, for crash tests.

It keeps two states: what programs see, and what would survive a power loss. ``fsync`` moves a file's bytes from the
first to the second, ``fsync_folder`` a folder's names. Any operation that changes something can be the last one
(``Crash``), can be torn (a write that stops half way), or can fail (disk full, failed sync). After a failed sync a
file's unsynced bytes never become durable, whatever later syncs report - as on Linux.
"""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field
from pathlib import Path


class Crash(BaseException):
    """The machine stops here. No ``except Exception`` may hold it up."""


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    failed: bool = False  # a sync has failed: later ones save nothing


@dataclass
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)


class SimFiles:
    """Implements ``nx46vx.runtime.files.Files``.

    ``crash_at``: number (from 0) of the changing operation at which everything stops, ``torn``: half of it is done if
    it is a write. ``fail_at``: number of the operation that fails with ``error``; with ``torn`` a write there is cut
    short and the next operation fails. ``lies``: operations of these names do nothing (mutants without syncs).
    """

    def __init__(
        self, root: Folder | None = None, *, crash_at: int | None = None, torn: bool = False,
        fail_at: int | None = None, error: int = errno.ENOSPC, lies: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.root = root if root is not None else Folder()
        self.count = 0
        self.log: list[str] = []
        self.synced_after_failure: list[str] = []
        self._crash_at, self._torn, self._fail_at, self._error, self._lies = crash_at, torn, fail_at, error, lies
        self._open: dict[int, tuple[Path, File]] = {}
        self._at: dict[int, int] = {}  # handle -> where its next write goes; those without one write at the end
        self._next = 3
        self._dead = False

    # operations that change something

    def create(self, path: Path) -> int:
        folder = self._folder(path.parent)
        if path.name in folder.names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        self._step("create", path)
        file = folder.names[path.name] = File()
        self._next += 1
        self._open[self._next] = (path, file)
        return self._next

    def write(self, handle: int, data: bytes, /) -> int:
        path, file = self._open[handle]
        half = len(data) // 2
        try:
            self._step("write", path)
        except Crash:
            if self._torn:
                self._put(handle, file, data[:half])
            raise
        except OSError:
            if half and self._torn:
                self._fail_at = self.count  # a short write now, the error at the next one
                self._put(handle, file, data[:half])
                return half
            raise
        self._put(handle, file, data)
        return len(data)

    def reopen(self, path: Path) -> int:
        self._alive()
        file = self._folder(path.parent).names.get(path.name)
        if not isinstance(file, File):
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._next += 1
        self._open[self._next], self._at[self._next] = (path, file), 0
        return self._next

    def truncate(self, handle: int, size: int, /) -> None:
        path, file = self._open[handle]
        self._step("truncate", path)
        del file.data[size:]

    def fsync(self, handle: int, /) -> None:
        self._sync("fsync", handle)

    def fdatasync(self, handle: int, /) -> None:
        self._sync("fdatasync", handle)

    def fsync_folder(self, path: Path) -> None:
        folder = self._folder(path)
        self._step("fsync_folder", path)
        if "fsync_folder" not in self._lies:
            folder.durable = dict(folder.names)

    def rename(self, source: Path, target: Path) -> None:
        here, there = self._folder(source.parent), self._folder(target.parent)
        moved, old = here.names.get(source.name), there.names.get(target.name)
        if moved is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        if isinstance(old, Folder) and old.names:
            raise OSError(errno.ENOTEMPTY, "not empty", str(target))
        self._step("rename", target)
        del here.names[source.name]
        there.names[target.name] = moved

    def mkdir(self, path: Path) -> None:
        folder = self._folder(path.parent)
        if path.name in folder.names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        self._step("mkdir", path)
        folder.names[path.name] = Folder()

    def rmdir(self, path: Path) -> None:
        if self._folder(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        self._step("rmdir", path)
        del self._folder(path.parent).names[path.name]

    def unlink(self, path: Path) -> None:
        folder = self._folder(path.parent)
        if not isinstance(folder.names.get(path.name), File):
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._step("unlink", path)
        del folder.names[path.name]

    # operations that look

    def close(self, handle: int, /) -> None:
        self._alive()
        del self._open[handle]
        self._at.pop(handle, None)

    def listdir(self, path: Path) -> list[str]:
        self._alive()
        return list(self._folder(path).names)

    def exists(self, path: Path) -> bool:
        self._alive()
        try:
            folder = self._folder(path.parent)
        except OSError:
            return False
        return path.name in folder.names or path == Path("/")

    def is_link(self, path: Path) -> bool:
        return False

    def read(self, path: Path, offset: int = 0, size: int = -1) -> bytes:
        self._alive()
        file = self._folder(path.parent).names.get(path.name)
        if not isinstance(file, File):
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return bytes(file.data[offset:] if size < 0 else file.data[offset : offset + size])

    # what is left after a crash

    def remove(self, path: Path) -> None:
        """Lose a file or a folder with all that is in it, as when another disk does not come back."""
        names = self._folder(path.parent).names if self.exists(path) else {}
        names.pop(path.name, None)

    def after(self, model: str, seed: int = 0) -> Folder:
        """The tree that a new process finds. ``kill``: all that was written (only the process died). Power losses:
        ``lost``: only what was synced; ``data``: all bytes, but no unsynced name; ``names``: all names, but no unsynced
        bytes; ``holes``: all names, and unsynced bytes read as zeros; ``mixed``: drawn anew for every folder and file,
        a file may keep a part of its unsynced bytes."""
        return _survivor(self.root, model, random.Random(seed))

    def _put(self, handle: int, file: File, data: bytes) -> None:
        at = self._at.get(handle, len(file.data))
        file.data[at : at + len(data)] = data
        if handle in self._at:
            self._at[handle] += len(data)

    def _sync(self, name: str, handle: int) -> None:
        path, file = self._open[handle]
        if file.failed:
            self.synced_after_failure.append(str(path))
        try:
            self._step(name, path)
        except OSError:
            file.failed = True
            raise
        if name not in self._lies and not file.failed:
            file.durable = bytes(file.data)

    def _step(self, name: str, path: Path) -> None:
        """Count one changing operation; stop or fail here if it is the one."""
        self._alive()
        number, self.count = self.count, self.count + 1
        self.log.append(f"{name} {path}")
        if number == self._crash_at:
            self._dead = True
            raise Crash(f"{number}: {name} {path}")
        if number == self._fail_at:
            raise OSError(self._error, os.strerror(self._error), str(path))

    def _alive(self) -> None:
        if self._dead:
            raise Crash("the machine is down")

    def _folder(self, path: Path) -> Folder:
        folder: File | Folder | None = self.root
        for part in path.parts[1:]:
            folder = folder.names.get(part) if isinstance(folder, Folder) else None
        if isinstance(folder, File):
            raise NotADirectoryError(errno.ENOTDIR, "no folder", str(path))
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
        return folder


def _survivor(node: Folder, model: str, draw: random.Random) -> Folder:
    here = draw.choice(("lost", "names", "data", "kill", "holes")) if model == "mixed" else model
    names = node.durable if here in ("lost", "data") else node.names
    kept: dict[str, File | Folder] = {}
    for name, child in names.items():
        if isinstance(child, Folder):
            kept[name] = _survivor(child, model, draw)
            continue
        here = draw.choice(("lost", "kill", "holes", "part")) if model == "mixed" else model
        data, safe = bytes(child.data), len(child.durable)
        if here in ("lost", "names"):
            data = child.durable
        elif here == "holes":
            data = child.durable + b"\0" * (len(data) - safe)
        elif here == "part":
            data = data[: draw.randint(min(safe, len(data)), len(data))]
        kept[name] = File(bytearray(data), data)
    return Folder(kept, dict(kept))
